"""ReLU, local response norm and overlapping max pool as one GPU kernel each way.

The maps in between are never written: of the convolution's output, the pooled maps and a byte for
each of them are all that memory sees.  Not measured on a GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp

from alexnet_jax.model.kernels import TILE, Norm, Tile, call, load, store

_WINDOW, _STRIDE = 3, 2
_NOBODY = _WINDOW * _WINDOW  # the place of a winner that the ReLU after it has silenced


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def pooled_response(x: jax.Array, norm: Norm, relu_after: bool = False) -> jax.Array:
  """The 3x3 maxima with stride 2 of the normalized `x`.

  Args:
    x: float32 or bfloat16 (N, H, W, C), H and W at least 2.
    norm: the norm, and whether a ReLU precedes it.
    relu_after: whether a ReLU follows the pool.

  Returns:
    (N, ceil((H - 3) / 2) + 1, likewise, C), of x's type; float32 inside.  Gradients go to the first
    maximum in row-major order, as in `pooling.max_pool`.
  """
  return _forward(x, norm, relu_after)[0]


def _forward(x, norm, relu_after):
  batch, height, width, channels = x.shape
  shape = [-(-(n - _WINDOW) // _STRIDE) + 1 for n in (height, width)]
  kernel = partial(
    _forward_kernel, norm=norm, relu_after=relu_after, shape=x.shape[1:], pooled=shape
  )
  outputs = [jax.ShapeDtypeStruct((batch, *shape, channels), t) for t in (x.dtype, jnp.uint8)]
  pooled, winners = call(kernel, (shape[0], shape[1] * channels), outputs, x)
  return pooled, (x, winners)


def _backward(norm, relu_after, kept, gradient):
  del relu_after  # it is in the winners
  x, winners = kept
  _, height, width, channels = x.shape
  kernel = partial(_backward_kernel, norm=norm, shape=x.shape[1:], pooled=winners.shape[1:3])
  blocks = (-(-height // _STRIDE), -(-width // _STRIDE) * channels)
  return tuple(call(kernel, blocks, [x], x, winners, gradient))


pooled_response.defvjp(_forward, _backward)


def _forward_kernel(x_ref, pooled_ref, winner_ref, *, norm, relu_after, shape, pooled):
  height, width, channels = shape
  tile = Tile(channels, norm)
  mine = tile.column < pooled[1]
  best = jnp.full((TILE,), -jnp.inf, jnp.float32)
  winner = jnp.zeros((TILE,), jnp.int32)
  for place in range(_WINDOW * _WINDOW):
    at, inside = _pixel(tile, divmod(place, _WINDOW), shape)
    inside &= mine
    near = tile.near(x_ref, at, inside, norm.window)
    power, _ = norm.powers(norm.denominator(near))
    # As it would lie in memory: maxima are of rounded numbers, and ties among them.
    b = (near[0] * power).astype(x_ref.dtype).astype(jnp.float32)
    wins = inside & ((b > best) | (b != b))
    best, winner = jnp.where(wins, b, best), jnp.where(wins, place, winner)
  if relu_after:
    winner = jnp.where(best > 0, winner, _NOBODY)
    best = jnp.where(best < 0, 0.0, best)
  at = tile.row * pooled[1] * channels + tile.index
  store(pooled_ref, at, mine, best)
  store(winner_ref, at, mine, winner)


def _backward_kernel(x_ref, winner_ref, gradient_ref, dx_ref, *, norm, shape, pooled):
  """A program does blocks of 2x2 pixels: the four windows that reach a block are the same."""
  rows, columns = pooled
  channels = shape[2]
  tile = Tile(channels, norm)

  def reaching(t):
    """{(up, left): (winner, gradient)} of the windows so far up and left, `t` maps on."""
    found = {}
    for up, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
      row, column = tile.row - up, tile.column - left
      mask = tile.has(t) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
      at = (row * columns - left) * channels + tile.index + t
      found[up, left] = load(winner_ref, at, mask, _NOBODY), load(gradient_ref, at, mask)
    return found

  reached = {t: reaching(t) for t in norm.holders}
  results = []
  for pixel in ((0, 0), (0, 1), (1, 0), (1, 1)):
    upstream = dict.fromkeys(norm.holders, 0.0)
    for t in norm.holders:
      for (up, left), (winner, gradient) in reached[t].items():
        i, j = pixel[0] + _STRIDE * up, pixel[1] + _STRIDE * left
        if max(i, j) < _WINDOW:
          upstream[t] += jnp.where(winner == i * _WINDOW + j, gradient, 0.0)
    at, inside = _pixel(tile, pixel, shape)
    near = tile.near(x_ref, at, inside, norm.surroundings)
    results.append((at, inside, norm.gradient(near, upstream)))
  for result in results:  # at last: a store would keep loads from being shared
    store(dx_ref, *result)


def _pixel(tile, place, shape):
  """Where the pixel at (i, j) of each window or block lies, and whether the image has it."""
  height, width, channels = shape
  row, column = _STRIDE * tile.row + place[0], _STRIDE * tile.column + place[1]
  at = row * width * channels + tile.index + (column - tile.column) * channels
  return at, (row < height) & (column < width)
