"""Local response norm and overlapping max pool as one GPU kernel each way.

`local_response_norm`, `max_pool(window=3, stride=2)` and the ReLU before or after them, without the
maps in between ever being written: of the convolution's output, the pooled maps and a byte for each
of them are all that memory sees.  Seen in Pallas's interpreter and in Triton's compiler; not
measured on a GPU.

Kernels see an image as one row of numbers, (row, column, channel) in that order, and a program does
`_TILE` of them: any number of channels, without a power of two to pad to.  Neighbouring channels
are loads at shifted places, which a cache next to the arithmetic serves.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_WINDOW, _STRIDE = 3, 2
_NOBODY = _WINDOW * _WINDOW  # the place of a winner that the ReLU after it has silenced
_TILE, _WARPS = 256, 4


def pooled_response(
  x: jax.Array,
  *,
  size: int = 5,
  alpha: float,
  beta: float = 0.75,
  k: float = 2.0,
  groups: int = 1,
  relu_before: bool = False,
  relu_after: bool = False,
) -> jax.Array:
  """The 3x3 maxima with stride 2 of the normalized `x`.

  On a CPU the kernels are interpreted, which is slow and for tests.

  Args:
    x: float32 or bfloat16 (N, H, W, C), H and W at least 2.
    size, alpha, beta, k, groups: as in `normalization.local_response_norm`.
    relu_before: whether a ReLU precedes the norm.
    relu_after: whether a ReLU follows the pool.

  Returns:
    (N, ceil((H - 3) / 2) + 1, likewise, C), of x's type; float32 inside.  Gradients go to the first
    maximum in row-major order, as in `pooling.max_pool`.
  """
  norm = _Norm(size, alpha, beta, k, groups, relu_before, relu_after)
  return _pooled_response(x, norm)


class _Norm(NamedTuple):
  size: int
  alpha: float
  beta: float
  k: float
  groups: int
  relu_before: bool
  relu_after: bool


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pooled_response(x, norm):
  return _forward(x, norm)[0]


def _pooled_response_forward(x, norm):
  pooled, winners = _forward(x, norm)
  return pooled, (x, winners)


def _pooled_response_backward(norm, kept, gradient):
  x, winners = kept
  batch, height, width, channels = x.shape
  kernel = partial(_backward_kernel, norm=norm, shape=x.shape[1:], pooled=winners.shape[1:])
  blocks = (-(-height // _STRIDE), -(-width // _STRIDE) * channels)
  (dx,) = _call(kernel, blocks, [x.shape], [x.dtype], x, winners, gradient)
  return (dx,)


_pooled_response.defvjp(_pooled_response_forward, _pooled_response_backward)


def _forward(x, norm):
  """Returns the pooled maps and, for each, the row-major place of the winner in its window."""
  batch, height, width, channels = x.shape
  rows, columns = (-(-(n - _WINDOW) // _STRIDE) + 1 for n in (height, width))
  kernel = partial(_forward_kernel, norm=norm, shape=x.shape[1:], pooled=(rows, columns, channels))
  shape = (batch, rows, columns, channels)
  return _call(kernel, (rows, columns * channels), [shape, shape], [x.dtype, jnp.uint8], x)


def _call(kernel, work, shapes, dtypes, *arrays):
  """Runs a kernel over images, `work[0]` rows, and tiles of the `work[1]` numbers of a row."""
  batch = len(arrays[0])

  def flat(shape):
    return (batch, math.prod(shape[1:]))

  def image(shape):
    return pl.BlockSpec((None, flat(shape)[1]), lambda tile, row, n: (n, 0))

  def run(*arrays, interpret):
    return pl.pallas_call(
      kernel,
      # Tiles of a row, then rows of an image: what programs share is read at about the same time.
      grid=(pl.cdiv(work[1], _TILE), work[0], batch),
      in_specs=[image(array.shape) for array in arrays],
      out_specs=[image(shape) for shape in shapes],
      out_shape=[
        jax.ShapeDtypeStruct(flat(shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
      ],
      compiler_params=triton.CompilerParams(num_warps=_WARPS),
      interpret=interpret,
    )(*(array.reshape(flat(array.shape)) for array in arrays))

  results = lax.platform_dependent(
    *arrays, cpu=partial(run, interpret=True), default=partial(run, interpret=False)
  )
  return [result.reshape(shape) for result, shape in zip(results, shapes, strict=True)]


class _Tile:
  """The numbers that a program does: the index, column and channel of each in a row."""

  def __init__(self, channels: int, norm: _Norm):
    self.row = pl.program_id(1)
    self.index = pl.program_id(0) * _TILE + lax.iota(jnp.int32, _TILE)
    self.column = lax.div(self.index, jnp.full_like(self.index, channels))
    self._tower = channels // norm.groups
    self._map = lax.rem(self.index, jnp.full_like(self.index, self._tower))

  def has(self, offset: int) -> jax.Array:
    """Whether the tower of each number has a map `offset` further on."""
    return (self._map + offset >= 0) & (self._map + offset < self._tower)


def _load(ref, at, mask, norm=None):
  """Returns float32 numbers, after the ReLU if `norm` asks for it; 0 outside the mask."""
  a = triton.load(ref.at[at], mask=mask, other=0).astype(jnp.float32)
  return jnp.where(a < 0, 0.0, a) if norm and norm.relu_before else a  # lets NaN through


def _window(size):
  """The maps that a map's denominator sums over, relative to it."""
  return range(-(size // 2), size - size // 2)


def _power_and_inverse(d, beta):
  """d**-beta and 1/d for d > 0: for the paper's 3/4 by inverse roots, an instruction each."""
  if beta == 0.75:
    root = lax.rsqrt(d)
    return root * root * lax.rsqrt(root), root * root
  return lax.exp(-beta * lax.log(d)), 1 / d


def _forward_kernel(x_ref, pooled_ref, winner_ref, *, norm, shape, pooled):
  height, width, channels = shape
  tile = _Tile(channels, norm)
  mine = tile.index < pooled[1] * channels
  best = jnp.full((_TILE,), -jnp.inf, jnp.float32)
  winner = jnp.zeros((_TILE,), jnp.int32)
  for place in range(_WINDOW * _WINDOW):
    i, j = divmod(place, _WINDOW)
    row, column = _STRIDE * tile.row + i, _STRIDE * tile.column + j
    inside = mine & (row < height) & (column < width)
    # (column * channels + channel) of a tile's numbers, _STRIDE * column + j pixels to the right.
    at = row * width * channels + tile.index + (column - tile.column) * channels
    near = {t: _load(x_ref, at + t, inside & tile.has(t), norm) for t in _window(norm.size)}
    d = norm.k + norm.alpha * sum(a * a for a in near.values())
    # As it would lie in memory: maxima are of rounded numbers, and ties among them.
    power, _ = _power_and_inverse(d, norm.beta)
    b = (near[0] * power).astype(x_ref.dtype).astype(jnp.float32)
    wins = inside & ((b > best) | (b != b))
    best, winner = jnp.where(wins, b, best), jnp.where(wins, place, winner)
  if norm.relu_after:
    winner = jnp.where(best > 0, winner, _NOBODY)
    best = jnp.where(best < 0, 0.0, best)
  at = tile.row * pooled[1] * channels + tile.index
  triton.store(pooled_ref.at[at], best.astype(pooled_ref.dtype), mask=mine)
  triton.store(winner_ref.at[at], winner.astype(jnp.uint8), mask=mine)


def _backward_kernel(x_ref, winner_ref, gradient_ref, dx_ref, *, norm, shape, pooled):
  """A program does blocks of 2x2 pixels: the four windows that reach a block are the same."""
  height, width, channels = shape
  rows, columns, _ = pooled
  tile = _Tile(channels, norm)
  windows = _window(norm.size)
  holders = [-t for t in windows]  # the maps whose windows hold a map

  def reaching(t):
    """{(up, left): (winner, gradient)} of the windows so far up and left, `t` maps on."""
    found = {}
    for up, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
      row, column = tile.row - up, tile.column - left
      mask = tile.has(t) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
      at = (row * columns - left) * channels + tile.index + t
      winner = triton.load(winner_ref.at[at], mask=mask, other=_NOBODY).astype(jnp.int32)
      found[up, left] = winner, _load(gradient_ref, at, mask)
    return found

  reached = {t: reaching(t) for t in holders}
  results = []
  for i in range(_STRIDE):
    for j in range(_STRIDE):
      row, column = _STRIDE * tile.row + i, _STRIDE * tile.column + j
      inside = (row < height) & (column < width)
      at = row * width * channels + tile.index + (column - tile.column) * channels
      seen = sorted({t + u for t in holders for u in windows})
      a = {t: _load(x_ref, at + t, inside & tile.has(t), norm) for t in seen}
      # As in normalization.py: direct - 2 alpha beta a * (sum of a direct / d over the holders).
      shared, direct = 0.0, {}
      for t in holders:
        won = 0.0
        for (up, left), (winner, gradient) in reached[t].items():
          place = (i + _STRIDE * up, j + _STRIDE * left)
          if max(place) < _WINDOW:
            won += jnp.where(winner == place[0] * _WINDOW + place[1], gradient, 0.0)
        d = norm.k + norm.alpha * sum(a[t + u] * a[t + u] for u in windows)
        power, inverse = _power_and_inverse(d, norm.beta)
        direct[t] = won * power
        shared += a[t] * direct[t] * inverse
      dx = direct[0] - 2 * norm.alpha * norm.beta * a[0] * shared
      results.append((at, jnp.where(a[0] > 0, dx, 0.0) if norm.relu_before else dx, inside))
  for at, dx, inside in results:  # at last: a store would keep loads from being shared
    triton.store(dx_ref.at[at], dx.astype(dx_ref.dtype), mask=inside)
