"""What the GPU kernels of response norms share.

They are Pallas kernels for Triton, the one of its two GPU compilers that reads memory at any place
under a mask.  JAX 0.10 has it; from JAX 0.11 on it is deprecated
(docs.jax.dev/en/latest/pallas/CHANGELOG.html).

A kernel sees an image as one row of numbers, (row, column, channel) in that order, and a program
does `TILE` of them: any number of channels, without a power of two to pad to.  Neighbouring
channels are loads at shifted places, which a cache next to the arithmetic serves.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

TILE = 256
_WARPS = 4


class Norm(NamedTuple):
  """The arguments of `normalization.local_response_norm`, and whether a ReLU precedes it."""

  size: int
  alpha: float
  beta: float
  k: float
  groups: int
  relu_before: bool

  @property
  def window(self) -> range:
    """The maps that a map's denominator sums over, relative to it."""
    return range(-(self.size // 2), self.size - self.size // 2)

  @property
  def holders(self) -> list[int]:
    """The maps whose windows hold a map, relative to it."""
    return [-t for t in self.window]

  @property
  def surroundings(self) -> list[int]:
    """The maps that the windows of the holders hold, relative to a map."""
    return sorted({t + u for t in self.holders for u in self.window})

  def denominator(self, near: dict[int, jax.Array], at: int = 0) -> jax.Array:
    """Of the map `at`, from the activities of the maps around it."""
    return self.k + self.alpha * sum(near[at + t] * near[at + t] for t in self.window)

  def powers(self, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d**-beta and 1/d for d > 0: for the paper's 3/4 by inverse roots, an instruction each."""
    if self.beta == 0.75:
      root = lax.rsqrt(d)
      return root * root * lax.rsqrt(root), root * root
    return lax.exp(-self.beta * lax.log(d)), 1 / d

  def gradient(self, near: dict[int, jax.Array], upstream: dict[int, jax.Array]) -> jax.Array:
    """The gradient with respect to the input, as in `normalization.py`.

    direct - 2 alpha beta a * (sum of a direct / d over the holders), 0 where the ReLU was.

    Args:
      near: activities of the surroundings.
      upstream: gradient with respect to the norm's output, of the holders.
    """
    direct, shared = {}, 0.0
    for t in self.holders:
      power, inverse = self.powers(self.denominator(near, t))
      direct[t] = upstream[t] * power
      shared += near[t] * direct[t] * inverse
    dx = direct[0] - 2 * self.alpha * self.beta * near[0] * shared
    return jnp.where(near[0] > 0, dx, 0.0) if self.relu_before else dx


class Tile:
  """The numbers that a program does: `index`, `column` and channel of each in `row`."""

  def __init__(self, channels: int, norm: Norm):
    self.row = pl.program_id(1)
    self.index = pl.program_id(0) * TILE + lax.iota(jnp.int32, TILE)
    self.column = lax.div(self.index, jnp.full_like(self.index, channels))
    self._norm = norm
    self._tower = channels // norm.groups
    self._map = lax.rem(self.index, jnp.full_like(self.index, self._tower))

  def has(self, offset: int) -> jax.Array:
    """Whether the tower of each number has a map `offset` further on."""
    return (self._map + offset >= 0) & (self._map + offset < self._tower)

  def near(self, x_ref, at: jax.Array, mask: jax.Array, offsets) -> dict[int, jax.Array]:
    """Activities at the places `at` and so many maps on, after the ReLU; 0 outside the tower."""
    found = {t: load(x_ref, at + t, mask & self.has(t)) for t in offsets}
    if self._norm.relu_before:
      return {t: jnp.where(a < 0, 0.0, a) for t, a in found.items()}  # lets NaN through
    return found


def load(ref, at: jax.Array, mask: jax.Array, other: float = 0) -> jax.Array:
  """Numbers in float32; `other` outside the mask."""
  return triton.load(ref.at[at], mask=mask, other=other).astype(jnp.float32)


def store(ref, at: jax.Array, mask: jax.Array, values: jax.Array) -> None:
  """Writes numbers in the type of `ref`."""
  triton.store(ref.at[at], values.astype(ref.dtype), mask=mask)


def call(kernel, work: tuple[int, int], outputs: list, *arrays: jax.Array) -> list[jax.Array]:
  """Runs a kernel over images, `work[0]` rows, and tiles of the `work[1]` numbers of a row.

  On a CPU the kernel is interpreted, which is slow and for tests.

  Args:
    kernel: takes references to each image's numbers, inputs first.
    work: rows, numbers in a row.
    outputs: jax.ShapeDtypeStruct of each result.
    *arrays: (N, ...) each.

  Returns:
    The results.
  """

  def flat(array):
    return (len(arrays[0]), math.prod(array.shape[1:]))

  def image(array):
    return pl.BlockSpec((None, flat(array)[1]), lambda tile, row, n: (n, 0))

  def run(*arrays, interpret):
    return pl.pallas_call(
      kernel,
      # Tiles of a row, then rows of an image: what programs share is read at about the same time.
      grid=(pl.cdiv(work[1], TILE), work[0], len(arrays[0])),
      in_specs=[image(array) for array in arrays],
      out_specs=[image(output) for output in outputs],
      out_shape=[jax.ShapeDtypeStruct(flat(output), output.dtype) for output in outputs],
      compiler_params=triton.CompilerParams(num_warps=_WARPS),
      interpret=interpret,
    )(*(array.reshape(flat(array)) for array in arrays))

  results = lax.platform_dependent(
    *arrays, cpu=partial(run, interpret=True), default=partial(run, interpret=False)
  )
  return [result.reshape(output.shape) for result, output in zip(results, outputs, strict=True)]
