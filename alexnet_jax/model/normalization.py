"""Local response normalization, across maps and within a map (paper section 3.3)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.model.fusion import stored


def local_response_norm(
  x: jax.Array,
  *,
  size: int = 5,
  alpha: float,
  beta: float = 0.75,
  k: float = 2.0,
  groups: int = 1,
) -> jax.Array:
  """Divides each activity by a power of the energy of its neighbors in other maps.

  b_i = a_i / (k + alpha * sum_j a_j^2)^beta over maps j from i - size//2 to i - size//2 + size - 1,
  clipped to the tower that i is in (cuda-convnet `cmrnorm`).

  Args:
    x: (..., C).
    size: number of adjacent maps in a window.
    alpha: weight of the plain sum: cuda-convnet, Caffe and torch write size * alpha for it.
    beta: exponent.
    k: additive constant (cuda-convnet `minDiv`).
    groups: number of towers, contiguous parts of the maps that do not see each other.

  Returns:
    An array like x; sums and powers in float32.
  """
  window = (1,) * (x.ndim - 1) + (size,)
  return _normalize(x, window, groups, alpha, beta, k)


def spatial_response_norm(
  x: jax.Array, *, size: int, alpha: float, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
  """Divides each activity by a power of the energy around it in its own map.

  As `local_response_norm`, over a window of size x size positions, clipped at the edges
  (cuda-convnet `rnorm`, where k is 1 and alpha is scale / size^2).

  Args:
    x: (N, H, W, C).
    size: height and width of a window.
    alpha: weight of the plain sum.
    beta: exponent.
    k: additive constant.

  Returns:
    An array like x; sums and powers in float32.
  """
  return _normalize(x, (1, size, size, 1), 1, alpha, beta, k)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalize(x, window, groups, alpha, beta, k):
  a = x.astype(jnp.float32)
  d = k + alpha * _energy(a, x.dtype, window, groups)
  return stored((a * _power(d, -beta)).astype(x.dtype))[0]


def _energy(a, dtype, window, groups):
  return _window_sum(a * a, dtype, window, [n // 2 for n in window], groups)


def _window_sum(a, dtype, window, before, groups):
  """Sums over a window that starts `before` places before each place, within towers of channels.

  Args:
    a: float32 (..., C).
    dtype: type of what the sums are for, which says how exact products must be.
    window, before: one number for each axis.
    groups: number of towers.
  """
  by_axis = partial(_sum_by_axis, window=window, before=before, groups=groups)
  if window[-1] == 1:
    at_once = partial(_sum_at_once, window=window, before=before)  # one pass over a GPU's memory
    return lax.platform_dependent(a, cuda=at_once, default=by_axis)
  band = _band(a.shape[-1], window[-1], before[-1], groups)
  # Three bfloat16 products are exact to 2^-16, six to 2^-24.
  precision = lax.Precision.HIGH if dtype == jnp.bfloat16 else lax.Precision.HIGHEST

  def by_product(a):  # by TPU's compiler a third of the cycles
    return jnp.matmul(a, band, precision=precision)

  return lax.platform_dependent(a, tpu=by_product, default=by_axis)


def _band(channels: int, size: int, before: int, groups: int) -> np.ndarray:
  """(C, C): 1 where channel i is in the window and the tower of channel j."""
  i, j = np.ogrid[:channels, :channels]
  width = channels // groups
  inside = (i >= j - before) & (i < j - before + size) & (i // width == j // width)
  return inside.astype(np.float32)


def _sum_at_once(a, window, before):
  padding = [(low, size - 1 - low) for size, low in zip(window, before, strict=True)]
  return lax.reduce_window(a, 0.0, lax.add, window, (1,) * a.ndim, padding)


def _sum_by_axis(a, window, before, groups):
  """One axis at a time: 2 x 5 additions for each place instead of 25, and 3 times as fast."""
  shape = a.shape
  a = a.reshape(*shape[:-1], groups, shape[-1] // groups)
  for axis, (size, low) in enumerate(zip(window, before, strict=True)):
    if size > 1:
      axis += axis == len(window) - 1  # the channels of a tower come last
      sizes, padding = [1] * a.ndim, [(0, 0)] * a.ndim
      sizes[axis], padding[axis] = size, (low, size - 1 - low)
      a = lax.reduce_window(a, 0.0, lax.add, sizes, (1,) * a.ndim, padding)
  return a.reshape(shape)


def _power(d, exponent):
  """d**exponent for d > 0: for the paper's -3/4 by square roots, which are far faster."""
  if exponent == -0.75:
    root = lax.rsqrt(d)
    return root * lax.sqrt(root)
  return lax.exp(exponent * lax.log(d))


def _normalize_forward(x, window, groups, alpha, beta, k):
  # Saves only x: recomputing the denominator is cheaper than storing and reloading it.
  return _normalize(x, window, groups, alpha, beta, k), x


def _normalize_backward(window, groups, alpha, beta, k, x, gradient):
  # db_j/da_i = [i = j] d_j^-beta - 2 alpha beta a_i a_j d_j^(-beta-1) [i in the window of j]
  def parts(x, gradient):
    a, g = x.astype(jnp.float32), gradient.astype(jnp.float32)
    d = k + alpha * _energy(a, x.dtype, window, groups)
    return a, d, g * _power(d, -beta)

  def pull_back(x, gradient, recompute):
    a, d, direct = parts(x, gradient)
    ratio = a * direct / d
    if recompute:  # fewer bytes, see `stored`; on a CPU it takes longer
      ratio, x, gradient = lax.optimization_barrier((ratio, x, gradient))
      a, _, direct = parts(x, gradient)
    # The places whose windows hold i form the mirror image of i's own window.
    mirrored = [n - 1 - n // 2 for n in window]
    shared = _window_sum(ratio, x.dtype, window, mirrored, groups)
    return (direct - 2 * alpha * beta * a * shared).astype(x.dtype)

  x, gradient = stored(x, gradient)
  on_cuda, elsewhere = partial(pull_back, recompute=True), partial(pull_back, recompute=False)
  return stored(lax.platform_dependent(x, gradient, cuda=on_cuda, default=elsewhere))


_normalize.defvjp(_normalize_forward, _normalize_backward)
