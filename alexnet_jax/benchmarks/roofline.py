"""How near a training step comes to what the device can do, measured in the same process.

Two ceilings: products of large matrices, and a large sum of two arrays.  What a step needs is known
twice: from the table of layers, and from XLA's count of the program it compiled.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from alexnet_jax.model import layers
from alexnet_jax.terminal import si
from alexnet_jax.train.devices import Devices

# On an accelerator small sizes would time the launch of the program.
_SIZES = {'cpu': 2048}
_NUMBERS = {'cpu': 1 << 25}  # 128 MiB of float32, more than caches hold
_SIZE_ELSEWHERE, _NUMBERS_ELSEWHERE = 8192, 1 << 28
_SECONDS = 0.3
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Roofline:
  """What a step does, and what its devices can do.

  Attributes:
    dtype: that of the step's products.
    flop: floating-point operations of a step's products, from the table of layers.
    compiled_bytes: read and written in a step by XLA's count on all devices, as if no operation
      found its input in a cache.
    temporary_bytes, argument_bytes: memory of the compiled program on one device.
    matrix_rate: FLOP/s of all devices in a large product of `dtype`: the best of a few rounds.
    bytes_per_second: likewise, of a sum of two arrays.
  """

  dtype: str
  flop: float
  compiled_bytes: float
  temporary_bytes: int
  argument_bytes: int
  matrix_rate: float
  bytes_per_second: float

  def utilization(self, steps_per_second: float) -> float:
    """The share of the products' ceiling."""
    return steps_per_second * self.flop / self.matrix_rate

  def bandwidth_share(self, steps_per_second: float) -> float:
    """The share of the memory's ceiling; more than 1 where caches help."""
    return steps_per_second * self.compiled_bytes / self.bytes_per_second

  def lines(self, steps_per_second: float) -> tuple[str, ...]:
    """All of it for people."""
    rate, moved = steps_per_second * self.flop, steps_per_second * self.compiled_bytes
    return (
      f'arithmetic: {si(self.flop, "FLOP")} a step, {si(rate, "FLOP/s")},'
      f' {self.utilization(steps_per_second):.1%} of a large matrix product of {self.dtype}'
      f' ({si(self.matrix_rate, "FLOP/s")})',
      f'traffic: at most {si(self.compiled_bytes, "B")} a step, {si(moved, "B/s")},'
      f' {self.bandwidth_share(steps_per_second):.1%} of a large sum'
      f' ({si(self.bytes_per_second, "B/s")})',
      f'memory: {si(self.temporary_bytes, "B")} while it runs, and'
      f' {si(self.argument_bytes, "B")} of state and images',
    )


def training_flop(table: layers.Table, shape: layers.Shape) -> float:
  """Floating-point operations of an image's forward and backward pass, products only.

  Each product of the forward pass comes back as two: for the weights and for the input, but
  nobody asks for the gradient of the images.  Two operations are a multiplication and an addition.
  """
  counts = [row.macs(inputs) for row, inputs, _ in layers.walk(table, shape) if row.macs(inputs)]
  return 2.0 * (3 * sum(counts) - counts[0])


def measure_roofline(
  compiled: jax.stages.Compiled, devices: Devices, flop: float, dtype: str
) -> Roofline:
  """Asks XLA about a compiled step and times its devices, which are those of one process."""
  cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  platform, count = devices.platform, devices.local_count
  return Roofline(
    dtype=dtype,
    flop=flop,
    compiled_bytes=cost.get('bytes accessed', 0.0) * count,
    temporary_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    matrix_rate=count * matrix_rate(dtype, _SIZES.get(platform, _SIZE_ELSEWHERE)),
    bytes_per_second=count * memory_rate(_NUMBERS.get(platform, _NUMBERS_ELSEWHERE)),
  )


def matrix_rate(dtype: str, size: int) -> float:
  """FLOP/s of the product of two matrices (size, size) on the first device."""
  a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  return 2 * size**3 / _seconds(jax.jit(jnp.matmul), a, a)


def memory_rate(numbers: int) -> float:
  """Bytes/s of `a + b` of float32 on the first device: two arrays read, one written."""
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
