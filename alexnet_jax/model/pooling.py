"""Max and average pooling with the 2012 geometry: windows that overhang the edge are clipped."""

from functools import partial

import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax.errors import UserError


def _pooled(size: int, window: int, stride: int) -> int:
  """Returns how many windows cover `size` pixels, the last perhaps overhanging."""
  windows = -(-(size - window) // stride) + 1
  if windows < 1 or stride > window:
    raise UserError(
      f'pooling {window}x{window} with stride {stride} of a map {size} wide leaves a window empty;'
      ' use a larger image, a smaller window, or a stride of at most the window'
    )
  return windows


def _overhang(shape, window, stride):
  """Returns the (low, high) padding of each NHWC axis that completes the last windows."""
  rows, columns = ((_pooled(n, window, stride) - 1) * stride + window - n for n in shape[1:3])
  return ((0, 0), (0, rows), (0, columns), (0, 0))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum of each window; the gradient goes to the first maximum in row-major order.

  Args:
    x: (N, H, W, C).
    window: height and width of a window.
    stride: step between windows.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type: cuda-convnet2's `outputsX`.
  """
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    (1, window, window, 1),
    (1, stride, stride, 1),
    _overhang(x.shape, window, stride),
  )


def _max_pool_forward(x, window, stride):
  y = max_pool(x, window, stride)
  return y, (x, y)


def _max_pool_backward(window, stride, residuals, gradient):
  x, y = residuals
  overhang = _overhang(x.shape, window, stride)
  padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(*edges, 0) for edges in overhang])
  _, rows, columns, _ = y.shape
  height, width = padded.shape[1:3]
  total = jnp.zeros(padded.shape, gradient.dtype)
  unclaimed = jnp.ones(y.shape, bool)
  zero = jnp.zeros((), gradient.dtype)
  for i in range(window):
    for j in range(window):
      bottom, right = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
      tap = lax.slice(
        padded, (0, i, j, 0), (x.shape[0], bottom, right, x.shape[3]), (1, stride, stride, 1)
      )
      hit = unclaimed & (tap == y)
      unclaimed &= ~hit
      spread = (0, 0, 0), (i, height - bottom, stride - 1), (j, width - right, stride - 1), (0, 0, 0)
      total += lax.pad(jnp.where(hit, gradient, zero), zero, spread)
  return (lax.pad(total, zero, [(lo, -hi, 0) for lo, hi in overhang]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Averages each window over the pixels that it has: one clipped at the edge has fewer.

  Args:
    x: (N, H, W, C).
    window: height and width of a window.
    stride: step between windows.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type; summed in float32.
  """
  _, height, width, _ = x.shape
  total = lax.reduce_window(
    x.astype(jnp.float32),
    0.0,
    lax.add,
    (1, window, window, 1),
    (1, stride, stride, 1),
    _overhang(x.shape, window, stride),
  )
  rows = _window_lengths(height, window, stride)
  columns = _window_lengths(width, window, stride)
  return (total / jnp.outer(rows, columns)[:, :, None]).astype(x.dtype)


def _window_lengths(size, window, stride):
  starts = jnp.arange(_pooled(size, window, stride)) * stride
  return (jnp.minimum(starts + window, size) - starts).astype(jnp.float32)
