"""Max and average pooling with the 2012 geometry: windows that overhang the edge are clipped."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.model.fusion import no_fusion


def max_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum of each window; the gradient goes to the first maximum in row-major order.

  Args:
    x: (N, H, W, C).
    window: height and width of a window, at most 16.
    stride: step between windows, at most `window`.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type: cuda-convnet's `outputsX`.
  """
  return lax.platform_dependent(
    x,
    tpu=lambda x: _max_by_reduce_window(x, window, stride),
    default=lambda x: _max_by_taps(x, window, stride),
  )


def _max_by_reduce_window(x, window, stride):
  # By TPU's compiler a quarter of the cycles of taps, with the gradient (docs/performance.md).
  # In float32, so that the gradients of windows that share a maximum are added in it.  Without the
  # barrier what precedes writes x in float32: twice the bytes, and twice the cycles of the pool.
  wide = lax.optimization_barrier(x).astype(jnp.float32)
  sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
  padding = ((0, 0), *((0, n) for n in _overhang(x.shape, window, stride)), (0, 0))
  return lax.reduce_window(wide, -np.inf, lax.max, sizes, strides, padding).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_by_taps(x, window, stride):
  return _maxima(x, window, stride)[0]


def _taps_forward(x, window, stride):
  # Which pixel won takes a byte; to keep x and the result instead would take 20 times the memory.
  y, winners = no_fusion(partial(_maxima, window=window, stride=stride), x)
  return y, (winners, x[:0])  # an empty array, for the gradient to know the shape of x


def _taps_backward(window, stride, saved, gradient):
  winners, empty = saved
  return (_spread(gradient, winners, empty.shape, window, stride),)


_max_by_taps.defvjp(_taps_forward, _taps_backward)


def _maxima(x, window, stride):
  """Returns the maximum of each window and the row-major place in the window of the first such."""
  maximum, *others = taps(_complete(x, -jnp.inf, window, stride), window, stride)
  place = jnp.zeros(maximum.shape, jnp.uint8)
  for number, tap in enumerate(others, start=1):
    place = jnp.where(tap > maximum, jnp.uint8(number), place)
    maximum = jnp.maximum(maximum, tap)
  return maximum, place


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def avg_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Averages each window over the pixels that it has: one clipped at the edge has fewer.

  Its own gradient takes a third of the time of JAX's, which adds up padded slices.

  Args:
    x: (N, H, W, C).
    window: height and width of a window.
    stride: step between windows, at most `window`.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type; summed in float32.
  """
  total = sum(taps(_complete(x.astype(jnp.float32), 0, window, stride), window, stride))
  return (total / _window_sizes(x.shape, window, stride)).astype(x.dtype)


def _avg_pool_forward(x, window, stride):
  return avg_pool(x, window, stride), x[:0]


def _avg_pool_backward(window, stride, empty, gradient):
  share = gradient.astype(jnp.float32) / _window_sizes(empty.shape, window, stride)
  return (_spread(share, None, empty.shape, window, stride).astype(gradient.dtype),)


avg_pool.defvjp(_avg_pool_forward, _avg_pool_backward)


def _windows(size: int, window: int, stride: int) -> int:
  """Returns how many windows cover `size` pixels, the last perhaps overhanging."""
  return -(-(size - window) // stride) + 1


def _complete(x, value, window: int, stride: int):
  """Pads below and beside so that no window overhangs."""
  edges = ((0, 0, 0), *((0, n, 0) for n in _overhang(x.shape, window, stride)), (0, 0, 0))
  return lax.pad(x, jnp.array(value, x.dtype), edges)


def _overhang(shape, window: int, stride: int) -> list[int]:
  """By how many pixels the last window overhangs below and beside."""
  return [(_windows(size, window, stride) - 1) * stride + window - size for size in shape[1:3]]


def taps(x: jax.Array, window: int, stride: int) -> Iterator[jax.Array]:
  """Yields, place by place in row-major order, the pixel that each window has there.

  Strided slices: XLA:CPU's reduce_window takes 4 times as long.
  """
  reach = [(size - window) // stride * stride + 1 for size in x.shape[1:3]]
  for i in range(window):
    for j in range(window):
      ends = (x.shape[0], i + reach[0], j + reach[1], x.shape[3])
      yield lax.slice(x, (0, i, j, 0), ends, (1, stride, stride, 1))


def _spread(gradient, winners, shape, window, stride):
  """Returns the sum, for each pixel, of the gradients of the windows it is in (or won).

  Pixel stride * q + r is place r + stride * t of window q - t: all pixels with the same r see the
  windows alike, so the image is computed as (N, q, r, q, r, C).
  """
  _, height, width, channels = shape
  tall, wide = -(-height // stride), -(-width // stride)
  shifts = range(-(-window // stride))
  phase_i = np.arange(stride).reshape(1, 1, -1, 1, 1, 1)
  phase_j = np.arange(stride).reshape(1, 1, 1, 1, -1, 1)

  def windows_before(array, down, right):
    bottom, side = tall - array.shape[1] - down, wide - array.shape[2] - right
    edges = ((0, 0, 0), (down, bottom, 0), (right, side, 0), (0, 0, 0))
    return lax.pad(array, array.dtype.type(0), edges)[:, :, None, :, None, :]

  def phases(gradient, *winners):
    dtype, gradient = gradient.dtype, gradient.astype(jnp.float32)
    total = jnp.float32(0)
    for down in shifts:
      for right in shifts:
        i, j = phase_i + stride * down, phase_j + stride * right
        mine = (i < window) & (j < window)
        for winner in winners:
          mine &= windows_before(winner, down, right) == (i * window + j).astype(winner.dtype)
        total += jnp.where(mine, windows_before(gradient, down, right), 0)
    return total.astype(dtype)

  pixels = no_fusion(phases, gradient, *([] if winners is None else [winners]))
  return pixels.reshape(-1, tall * stride, wide * stride, channels)[:, :height, :width]


def _window_sizes(shape, window, stride):
  """Returns how many pixels each window has, (rows, columns, 1)."""
  starts = [np.arange(_windows(size, window, stride)) * stride for size in shape[1:3]]
  lengths = [
    np.minimum(start + window, size) - start for start, size in zip(starts, shape[1:3], strict=True)
  ]
  return np.outer(*lengths)[:, :, None].astype(np.float32)
