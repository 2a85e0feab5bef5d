"""How near a training step comes to what the device can do, measured in the same process.

Two ceilings: products of large matrices, and a large sum of two arrays.  What a step needs is known
twice: from the table of layers, and from XLA's count of the program it compiled.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from alexnet_jax.model import layers
from alexnet_jax.train.devices import Devices

# On an accelerator small sizes would time the launch of the program.
_SIDES = {'cpu': 2048}
_NUMBERS = {'cpu': 1 << 25}  # 128 MiB of float32, more than caches hold
_SIDE, _NUMBERS_ELSEWHERE = 8192, 1 << 28
_SECONDS = 0.3
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Roofline:
  """What a step does and what its devices can do.

  Attributes:
    batch_size: images of a step.
    flop_per_image: of the products of forward and backward pass, from the table of layers.
    compiled_bytes: read and written in a step by XLA's count on all devices, as if no operation
      found its input in a cache.
    temporary_bytes, argument_bytes: memory of the compiled program on one device.
    matrix_rates: FLOP/s of all devices by type: the best of a few rounds.
    bytes_per_second: likewise, of a sum of two arrays.
  """

  batch_size: int
  flop_per_image: float
  compiled_bytes: float
  temporary_bytes: int
  argument_bytes: int
  matrix_rates: dict[str, float]
  bytes_per_second: float

  def lines(self, images_per_second: float, compute_dtype: str) -> tuple[str, ...]:
    """What comes of it at a speed, for people."""
    rate = images_per_second * self.flop_per_image
    ceiling = self.matrix_rates[compute_dtype]
    moved = images_per_second / self.batch_size * self.compiled_bytes
    rates = ', '.join(f'{dtype} {_billions(value)}' for dtype, value in self.matrix_rates.items())
    return (
      f'arithmetic: {_billions(self.flop_per_image)}FLOP an image, {_billions(rate)}FLOP/s,'
      f' {rate / ceiling:.1%} of a large matrix product (FLOP/s: {rates})',
      f'traffic: at most {_billions(self.compiled_bytes)}B a step, {_billions(moved)}B/s,'
      f' {moved / self.bytes_per_second:.1%} of a large sum'
      f' ({_billions(self.bytes_per_second)}B/s)',
      f'memory: {_billions(self.temporary_bytes)}B while it runs, and'
      f' {_billions(self.argument_bytes)}B of state and images',
    )

  def to_json(self, images_per_second: float, compute_dtype: str) -> dict:
    rate = images_per_second * self.flop_per_image
    moved = images_per_second / self.batch_size * self.compiled_bytes
    return dataclasses.asdict(self) | {
      'flop_per_second': rate,
      'utilization': rate / self.matrix_rates[compute_dtype],
      'moved_bytes_per_second': moved,
      'bandwidth_share': moved / self.bytes_per_second,
    }


def training_flop(table: layers.Table, shape: layers.Shape) -> float:
  """Floating-point operations of an image's forward and backward pass, products only.

  Each product of the forward pass comes back as two: for the weights and for the input, but
  nobody asks for the gradient of the images.  Two operations are a multiplication and an addition.
  """
  counts = [row.macs(inputs) for row, inputs, _ in layers.walk(table, shape) if row.macs(inputs)]
  return 2.0 * (3 * sum(counts) - counts[0])


def measure(
  compiled: jax.stages.Compiled,
  devices: int,
  batch_size: int,
  flop_per_image: float,
  dtypes: set[str],
) -> Roofline:
  """Asks XLA about a compiled step and times the device.

  Args:
    compiled: the step, of one process.
    devices: how many it runs on.
    batch_size: its images.
    flop_per_image: see `training_flop`.
    dtypes: whose matrix product to time.
  """
  cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  return Roofline(
    batch_size=batch_size,
    flop_per_image=flop_per_image,
    compiled_bytes=cost.get('bytes accessed', 0.0) * devices,
    temporary_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    matrix_rates={dtype: devices * matrix_rate(dtype) for dtype in sorted(dtypes)},
    bytes_per_second=devices * memory_rate(),
  )


def matrix_rate(dtype: str, side: int | None = None) -> float:
  """FLOP/s of the product of two square matrices on the first device."""
  side = side or _SIDES.get(Devices().platform, _SIDE)
  a = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
  return 2 * side**3 / _seconds(jax.jit(jnp.matmul), a, a)


def memory_rate(numbers: int | None = None) -> float:
  """Bytes/s of `a + b` of float32 on the first device: two arrays read, one written."""
  numbers = numbers or _NUMBERS.get(Devices().platform, _NUMBERS_ELSEWHERE)
  a = jnp.ones(numbers, jnp.float32)
  return 3 * a.nbytes / _seconds(jax.jit(jnp.add), a, a + 1)


def _seconds(function, *arguments) -> float:
  """Of a call: the best of a few rounds, each long enough to be timed."""

  def timed(calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls

  timed(1)  # compiles
  calls = max(1, round(_SECONDS / _ROUNDS / timed(1)))
  return min(timed(calls) for _ in range(_ROUNDS))


def _billions(value: float) -> str:
  """A number with a unit's prefix, such as '1.23 T'."""
  for size, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:,.3g} {prefix}'
  return f'{value:.3g} '
