"""What a device sends in a training step: by formula, and by the compiled program.

On a ring of n devices each sends, of B bytes that are reduced, gathered or exchanged:

  all-reduce                    2 (n - 1) / n B
  all-gather, reduce-scatter      (n - 1) / n B     B: of all devices together
  all-to-all                      (n - 1) / n B     B: of one device
"""

import math

from alexnet_jax.benchmarks.hlo import SENT_PER_BYTE, HloModule, array_bytes
from alexnet_jax.model import layers
from alexnet_jax.train.sharded_dense import sharded_layers

_WIDTH = {'float32': 4, 'bfloat16': 2}


def bytes_by_formula(
  table: layers.Table, shape: layers.Shape, dtype: str, devices: int, images: int, sharded: bool
) -> dict[str, float]:
  """Bytes that a device sends in a training step, by formula.

  Gradients are float32; a sharded layer sends its inputs and outputs, and their gradients, instead.
  Below it there has to be a layer with weights, and single numbers are not counted.

  Args:
    table: the net.
    shape: of a view.
    dtype: compute dtype.
    devices, images: number of devices, and images on each.
    sharded: whether dense layers are spread over the devices as far as they divide.

  Returns:
    {operation: bytes}.
  """
  names = sharded_layers(table, devices) if sharded else ()
  gradients = inputs = outputs = 0
  for row, before, after in layers.walk(table, shape):
    if row.name in names:
      inputs += _WIDTH[dtype] * math.prod(before)
      outputs += _WIDTH['float32' if row is table[-1] else dtype] * math.prod(after)
    else:
      gradients += 4 * sum(map(math.prod, row.parameters(before).values()))
  share = (devices - 1) / devices
  gathered = share * devices * images * inputs
  return {
    'all-reduce': 2 * share * gradients,
    'all-gather': gathered,
    'reduce-scatter': gathered,
    'all-to-all': 2 * share * images * outputs,
  }


def bytes_in_program(program: str, devices: int) -> dict[str, float]:
  """Bytes that a device sends by the text of a compiled program, {operation: bytes}.

  Single numbers (metrics, norms) are left out.

  Raises:
    ValueError: it has collective operations of another kind.
  """
  totals = dict.fromkeys(SENT_PER_BYTE, 0.0)
  for instruction, times, _ in HloModule(program).executed():
    if operation := instruction.collective:
      if operation not in totals:
        raise ValueError(f'the program sends by {operation}, which is not known here')
      totals[operation] += (
        times * SENT_PER_BYTE[operation](devices) * array_bytes(instruction.result)
      )
  return totals
