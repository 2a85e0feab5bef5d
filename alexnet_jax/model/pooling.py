"""Max and average pooling with the 2012 geometry: windows that overhang the edge are clipped."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.errors import UserError
from alexnet_jax.model.fusion import no_fusion


def max_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum of each window; the gradient goes to the first maximum in row-major order.

  Args:
    x: (N, H, W, C).
    window: height and width of a window.
    stride: step between windows, at most `window`.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type: cuda-convnet's `outputsX`.

  Raises:
    UserError: a window would have no pixel.
  """
  return _max_pool(x, window, stride, x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, shape):
  del shape  # for the gradient, which no longer has x
  return _maxima(x, window, stride)[0]


def _max_pool_forward(x, window, stride, shape):
  del shape
  # Which pixel won takes a byte; to keep x and the result instead would take 20 times the memory.
  return no_fusion(partial(_maxima, window=window, stride=stride), x)


def _max_pool_backward(window, stride, shape, winners, gradient):
  return (_spread(gradient, winners, shape, window, stride),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _maxima(x, window, stride):
  """Returns the maximum of each window and the row-major place in the window of the first such."""
  maximum, *taps = _taps(x, -jnp.inf, window, stride)
  place = jnp.zeros(maximum.shape, jnp.uint8 if window < 16 else jnp.uint32)
  for number, tap in enumerate(taps, start=1):
    place = jnp.where(tap > maximum, place.dtype.type(number), place)
    maximum = jnp.maximum(maximum, tap)
  return maximum, place


def avg_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
  """Averages each window over the pixels that it has: one clipped at the edge has fewer.

  Args:
    x: (N, H, W, C).
    window: height and width of a window.
    stride: step between windows, at most `window`.

  Returns:
    (N, ceil((H - window) / stride) + 1, likewise, C), of x's type; summed in float32.

  Raises:
    UserError: a window would have no pixel.
  """
  return _avg_pool(x, window, stride, x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _avg_pool(x, window, stride, shape):
  total = sum(_taps(x.astype(jnp.float32), 0, window, stride))
  return (total / _window_sizes(shape, window, stride)).astype(x.dtype)


def _avg_pool_forward(x, window, stride, shape):
  return _avg_pool(x, window, stride, shape), None


def _avg_pool_backward(window, stride, shape, _, gradient):
  share = gradient.astype(jnp.float32) / _window_sizes(shape, window, stride)
  return (_spread(share, None, shape, window, stride).astype(gradient.dtype),)


_avg_pool.defvjp(_avg_pool_forward, _avg_pool_backward)


def _pooled(size: int, window: int, stride: int) -> int:
  """Returns how many windows cover `size` pixels, the last perhaps overhanging."""
  windows = -(-(size - window) // stride) + 1
  if windows < 1 or stride > window:
    raise UserError(
      f'pooling {window}x{window} with stride {stride} of a map {size} wide leaves a window empty;'
      ' use a larger image, a smaller window, or a stride of at most the window'
    )
  return windows


def _taps(x, padding_value, window: int, stride: int) -> Iterator[jax.Array]:
  """Yields, place by place in row-major order, the pixel that each window has there.

  Strided slices: XLA:CPU's reduce_window takes 4 times as long.
  """
  rows, columns = (_pooled(size, window, stride) for size in x.shape[1:3])
  reach = ((rows - 1) * stride + 1, (columns - 1) * stride + 1)
  overhang = [n + window - 1 - size for n, size in zip(reach, x.shape[1:3], strict=True)]
  edges = ((0, 0, 0), (0, overhang[0], 0), (0, overhang[1], 0), (0, 0, 0))
  x = lax.pad(x, jnp.array(padding_value, x.dtype), edges)
  for i in range(window):
    for j in range(window):
      ends = (x.shape[0], i + reach[0], j + reach[1], x.shape[3])
      yield lax.slice(x, (0, i, j, 0), ends, (1, stride, stride, 1))


def _spread(gradient, winners, shape, window, stride):
  """Returns the sum, for each pixel, of the gradients of the windows it is in (or won).

  Pixel stride * q + r is place r + stride * t of window q - t: all pixels with the same r see the
  windows alike, so the image is computed as (N, q, r, q, r, C).
  """
  batch, height, width, channels = shape
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
  return pixels.reshape(batch, tall * stride, wide * stride, channels)[:, :height, :width]


def _window_sizes(shape, window, stride):
  """Returns how many pixels each window has, (rows, columns, 1)."""
  starts = [np.arange(_pooled(size, window, stride)) * stride for size in shape[1:3]]
  lengths = [
    np.minimum(start + window, size) - start for start, size in zip(starts, shape[1:3], strict=True)
  ]
  return np.outer(*lengths)[:, :, None].astype(np.float32)
