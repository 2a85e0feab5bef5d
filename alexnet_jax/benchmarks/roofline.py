"""Utilization of the device by a training step: its FLOP and bytes against measured peak rates.

The peak rates are those of a product of large matrices and of a sum of two large arrays, measured
in the same process.  FLOP are counted from the table of layers, bytes by XLA's cost analysis.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.model import layers
from alexnet_jax.terminal import si
from alexnet_jax.train.devices import Devices

_SECONDS = 0.3
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Costs of a step and peak rates of its devices.

  Attributes:
    dtype: that of the step's products.
    flop: floating-point operations of a step's products, from the table of layers.
    compiled_bytes: bytes accessed in a step on all devices by XLA's cost analysis, which assumes no
      caches.
    temporary_bytes, argument_bytes: memory of the compiled program on one device.
    matrix_rate: FLOP/s of all devices in a large product of `dtype`: the best of a few rounds.
    memory_rate: bytes/s, likewise, of a sum of two arrays.
  """

  dtype: str
  flop: float
  compiled_bytes: float
  temporary_bytes: int
  argument_bytes: int
  matrix_rate: float
  memory_rate: float

  def shares(self, steps_per_second: float) -> tuple[float, float]:
    """Shares of `matrix_rate` and of `memory_rate`; the latter is above 1 where caches help."""
    return (
      steps_per_second * self.flop / self.matrix_rate,
      steps_per_second * self.compiled_bytes / self.memory_rate,
    )

  def lines(self, steps_per_second: float) -> tuple[str, ...]:
    """Lines to print."""
    rate, moved = steps_per_second * self.flop, steps_per_second * self.compiled_bytes
    utilization, bandwidth = self.shares(steps_per_second)
    return (
      f'arithmetic: {si(self.flop, "FLOP")} a step, {si(rate, "FLOP/s")}, {utilization:.1%} of a'
      f' large matrix product of {self.dtype} ({si(self.matrix_rate, "FLOP/s")})',
      f'traffic: at most {si(self.compiled_bytes, "B")} a step, {si(moved, "B/s")},'
      f' {bandwidth:.1%} of a large sum ({si(self.memory_rate, "B/s")})',
      f'memory: {si(self.temporary_bytes, "B")} while it runs, and'
      f' {si(self.argument_bytes, "B")} of state and images',
    )


def training_flop(table: layers.Table, shape: layers.Shape) -> float:
  """Floating-point operations of an image's forward and backward pass, products only."""
  return sum(layer_flop(table, shape).values())


def layer_flop(table: layers.Table, shape: layers.Shape) -> dict[str, float]:
  """The same by layer, all of the table.

  Each product of the forward pass has two in the backward pass, for the gradients of weights and of
  inputs, except that the images need no gradient.  A multiply-add is two operations.
  """
  counts = {row.name: 6.0 * row.macs(inputs) for row, inputs, _ in layers.walk(table, shape)}
  first = next(name for name, count in counts.items() if count)
  return counts | {first: counts[first] * 2 / 3}


def measure_roofline(
  compiled: jax.stages.Compiled, devices: Devices, flop: float, dtype: str
) -> Roofline:
  """Reads the costs of a compiled step from XLA and times the devices of this process."""
  cost: Any = compiled.cost_analysis() or {}
  memory: Any = compiled.memory_analysis()
  count = devices.local_count
  # On an accelerator small sizes would time the launch of the program.
  size, numbers = (2048, 1 << 25) if devices.platform == 'cpu' else (8192, 1 << 28)
  a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  b = jnp.ones(numbers, jnp.float32)  # more than caches hold
  return Roofline(
    dtype=dtype,
    flop=flop,
    compiled_bytes=cost.get('bytes accessed', 0.0) * count,
    temporary_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    matrix_rate=count * 2 * size**3 / _seconds(jax.jit(jnp.matmul), a, a),
    memory_rate=count * 3 * b.nbytes / _seconds(jax.jit(jnp.add), b, b + 1),
  )


def _seconds(function, *arguments) -> float:
  """Seconds of a call on the first device, the best of a few rounds."""

  def timed(calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls

  timed(1)  # compiles
  calls = max(1, round(_SECONDS / _ROUNDS / timed(1)))
  return min(timed(calls) for _ in range(_ROUNDS))
