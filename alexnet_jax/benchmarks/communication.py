"""The communication benchmark: what a device sends in a training step, and when sharding pays.

Counted in the program that is compiled for a few virtual devices of this CPU, and by formula for
many.  Nothing is timed: what a byte costs is up to the network, and whether it costs time to what
is computed meanwhile.

On a ring of n devices each sends, of B bytes that are reduced, gathered or exchanged:

  all-reduce                    2 (n - 1) / n B
  all-gather, reduce-scatter      (n - 1) / n B     B: of all devices together
  all-to-all                      (n - 1) / n B     B: of one device
"""

import math
from typing import Any

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.hlo import SENT_PER_BYTE, HloModule, array_bytes
from alexnet_jax.benchmarks.our_step import compile_step
from alexnet_jax.benchmarks.race import Options, Result
from alexnet_jax.benchmarks.worker import Candidate, start_worker
from alexnet_jax.model import layers, nets
from alexnet_jax.runtime import cpu
from alexnet_jax.runtime.environment import environment
from alexnet_jax.terminal import Console, aligned
from alexnet_jax.train.devices import Devices, check_training_batch
from alexnet_jax.train.sharded_dense import sharded_layers

DEVICES = 8
_SCALES = (8, 32, 128, 512, 1024)
_IMAGES = (1, 4, 16, 64, 256)
_WIDTH = {'float32': 4, 'bfloat16': 2}

_VIRTUAL = Candidate(
  'the compiled step',
  'alexnet_jax.benchmarks.communication:CompiledStep',
  {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}'},
)


def count_communication(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Counts what a config's training step sends with and without `model.shard_dense`.

  Arguments as those of `time_step.measure_step`; nothing is timed.

  Raises:
    UserError: the batch does not fit `DEVICES` devices.
  """
  del options
  config = config.copy_and_resolve_references()
  config.grad_accum_steps = 1  # more of them send the same in parts
  table = nets.table_of(config, config.data.num_classes or 10)
  shape, dtype = (config.input.crop, config.input.crop, 3), config.model.compute_dtype
  images = config.batch_size // DEVICES
  compiled, formula = {}, {}
  modes = {'plain': False, 'dense layers sharded': True}
  for mode, sharded in modes.items():
    if sharded and not sharded_layers(table, DEVICES):
      continue
    config.model.shard_dense = sharded
    Console().message(f'compiling: {mode}')
    with start_worker(_VIRTUAL, config=configs.to_json(config)) as worker:
      compiled[mode], machine = worker.call('count')
    formula[mode] = bytes_by_formula(table, shape, dtype, DEVICES, images, sharded)
  scaling = [scale(table, shape, dtype, devices) for devices in _SCALES]
  return Result(
    benchmark='communication',
    title=f'{name}, net {nets.title(config.model)}, {dtype}, {DEVICES} devices with {images} images'
    ' each',
    lines=(
      *_counts_table(compiled, formula),
      '',
      *_scaling_table(scaling),
      'in a step; moments of batch normalization are not in the formula, and what a byte costs is'
      ' not measured',
      *['compiled for a CPU, where XLA sends bfloat16 as float32'] * (dtype == 'bfloat16'),
    ),
    environment=machine,
    details={
      'compiled': compiled,
      'formula': formula,
      'scaling': scaling,
      'config': configs.to_json(config),
    },
  )


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


def scale(table: layers.Table, shape: layers.Shape, dtype: str, devices: int) -> dict[str, Any]:
  """By formula for so many devices: bytes of both modes, and up to which batch sharding pays.

  Returns:
    devices; layers, those that are sharded; plain, bytes; sharded, {images on a device: bytes};
    pays_up_to, images on a device, 0.0 if there are no such layers.
  """

  def total(images: int, sharded: bool) -> float:
    return sum(bytes_by_formula(table, shape, dtype, devices, images, sharded).values())

  plain, fixed = total(1, sharded=False), total(0, sharded=True)
  each = total(1, sharded=True) - fixed  # both modes are linear in the images
  return {
    'devices': devices,
    'layers': sharded_layers(table, devices),
    'plain': plain,
    'sharded': {images: fixed + images * each for images in _IMAGES},
    'pays_up_to': (plain - fixed) / each if each else 0.0,
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


class CompiledStep:
  """The training step compiled for the devices of this process, without any data."""

  def __init__(self, config: dict):
    """Takes a config as `config.to_json` gives it; UserError if its batch does not fit."""
    cpu.configure()
    self._config = configs.from_json(config)
    self._devices = Devices()
    check_training_batch(self._config, self._devices)

  def count(self) -> tuple[dict[str, float], dict]:
    """What `bytes_in_program` finds, and the environment."""
    text = compile_step(self._config, self._devices).as_text() or ''
    return bytes_in_program(text, self._devices.global_count), environment(self._devices)


def _counts_table(compiled: dict, formula: dict) -> list[str]:
  """By operation; of each mode what was counted and what the formula gives."""
  ways = (('compiled', compiled), ('formula', formula))
  columns = {f'{mode}, {way}': values[mode] for mode in compiled for way, values in ways}
  rows = [('MB a device sends', *columns)]
  for operation in SENT_PER_BYTE:
    rows.append((operation, *(_megabytes(values[operation]) for values in columns.values())))
  rows.append(('in all', *(_megabytes(sum(values.values())) for values in columns.values())))
  return aligned(rows)


def _scaling_table(scaling: list[dict[str, Any]]) -> list[str]:
  """What `scale` returns, in MB."""
  sharded = (f'sharded, {_IMAGES[0]} image each', *map(str, _IMAGES[1:]))
  rows = [('devices', 'plain', *sharded, 'pays up to, each', 'in all', 'layers')]
  for row in scaling:
    most, devices = row['pays_up_to'], row['devices']
    sizes = [_megabytes(size) if row['layers'] else '' for size in row['sharded'].values()]
    names = ' '.join(row['layers']) or 'none divides'
    batch = (f'{most:,.1f}', f'{math.floor(most * devices):,}')
    rows.append((f'{devices:,}', _megabytes(row['plain']), *sizes, *batch, names))
  return aligned(rows)


def _megabytes(size: float) -> str:
  return f'{size / 1e6:,.3f}' if size < 1e6 else f'{size / 1e6:,.1f}'
