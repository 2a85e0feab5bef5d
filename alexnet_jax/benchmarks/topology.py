"""A training step compiled for accelerators that are not here, by their own compiler.

Memory and cycles are the compiler's estimates, and nothing runs.  An operation without an estimate
(a collective, a custom call) counts as the larger of its products over the chip's peak and of the
bytes that it reads and writes over the memory's bandwidth; copies between memories that run beside
others do not count.  A fusion belongs to the layer that its last operation is of.
"""

import importlib.metadata
import importlib.util
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.benchmarks import chips, roofline
from alexnet_jax.benchmarks.hlo import SENT_PER_BYTE, Program, array_bytes
from alexnet_jax.benchmarks.our_step import compile_step
from alexnet_jax.benchmarks.worker import Contestant, start_worker
from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.terminal import Console, aligned, did_you_mean, duration, si
from alexnet_jax.train import plan
from alexnet_jax.train.devices import Devices, check_training_batch

_TRIES = 4  # compilations in search of the largest batch that fits
_LISTED = 4  # kinds of operations without an estimate
_PARTS = ('views', 'loss', 'update')  # of a step besides the layers, as step.py names them
_SETTINGS = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  # libtpu asks neither Google's metadata server nor other processes for a TPU, and is silent.
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
}


def show(
  config: ml_collections.ConfigDict, topology: str, timeout: float, json: Path | None = None
) -> None:
  """Compiles for a topology and prints what was found, after the plan.

  Args:
    config, topology, timeout: as those of `compile_for`.
    json: file for what it returns; '-' for the standard output, on which nothing else is printed.

  Raises:
    UserError: as `compile_for` does, or the file cannot be written.
  """
  check(topology)
  alone = json == Path('-')
  if not alone:
    try:
      plan.show(config, dry_run=True)
    except UserError as absent:
      print(f'no plan without the data, whose size is not known: {absent}', file=sys.stderr)
  report = compile_for(config, topology, timeout)
  if alone:
    print(files.json_text(report))
    return
  print('\n'.join(lines(report)))
  if json:
    try:
      files.write_json(json, report)
    except OSError as error:
      raise UserError(
        f'--json={json} cannot be written ({error.strerror}): choose another file'
      ) from None


def compile_for(config: ml_collections.ConfigDict, topology: str, timeout: float) -> dict[str, Any]:
  """Compiles a config's training step for a topology, in a process of its own.

  Args:
    config: validated; its batch is that of all devices.
    topology: such as 'v5e:2x4'.
    timeout: seconds that a compilation may take.

  Returns:
    What `estimate` returns, and `largest_batch`: the largest tried that fits; None if none did.

  Raises:
    UserError: no such topology, its compiler is not installed, or it takes too long.
  """
  chip = check(topology)
  advice = f'compile {topology} on a machine with more of it'
  child = Contestant(
    f'the compiler for {topology}', f'{__name__}:Compiler', _SETTINGS, advice=advice
  )

  def compiled(batch_size: int) -> dict[str, Any]:
    copy = config.copy_and_resolve_references()
    copy.batch_size = batch_size
    worker.start('compile', configs.to_json(copy))
    began, pause = time.monotonic(), 1 if sys.stderr.isatty() else 30
    title = f'{child.title}: batch {batch_size:,}'
    with Console() as console:
      console.progress(title, 0, round(timeout))
      while not worker.ready(min(pause, timeout)):
        seconds = time.monotonic() - began
        if seconds > timeout:
          raise UserError(
            f'--topology={topology}: not compiled after {duration(seconds)}: raise'
            f' --topology_timeout={timeout:g}, in seconds'
          )
        console.progress(f'{title}, {duration(seconds)}', round(seconds), round(timeout))
    return worker.result()

  with start_worker(child, topology=topology) as worker:
    report = compiled(config.batch_size)
    report['largest_batch'] = config.batch_size if report['fits'] else None
    if not report['fits']:
      report['largest_batch'] = _largest_that_fits(config, report, compiled)
  return report | {'chip': chip}


def check(topology: str) -> str:
  """The name of a topology's chip.

  Raises:
    UserError: it is not known, or the compiler is not installed.
  """
  found = re.fullmatch(r'(\w+):\d+(x\d+){1,2}', topology)
  if not found or found[1] not in chips.TPUS:
    hint = did_you_mean(topology.partition(':')[0], chips.TPUS)
    known = f'{", ".join(chips.TPUS)}, with their number along each axis, such as v5e:2x4'
    raise UserError(f'--topology={topology}: {f"{hint} " * bool(hint)}give one of {known}')
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f"--topology={topology} needs the TPU's compiler, 0.7 GB, which needs no TPU:"
      " pip install 'jax[tpu]'"
    )
  return found[1]


def _largest_that_fits(config, report: dict[str, Any], compiled) -> int | None:
  """Searches below a batch that does not fit, by `compiled`, in a few steps."""
  devices = report['devices']
  unit = config.grad_accum_steps * (config.model.ghost_batch or 1)
  fits, fails = 0, report['batch_size'] // devices // unit
  unit *= devices
  for _ in range(_TRIES):
    if fails - fits <= max(1, fits // 16):
      break
    share = report['memory_limit'] / (report['memory_bytes'] or math.inf)
    guess = int(report['batch_size'] // unit * share)
    guess = min(max(guess, (3 * fits + fails) // 4, 1), (fits + 7 * fails) // 8, fails - 1)
    report = compiled(max(guess, fits + 1) * unit)
    tried = report['batch_size'] // unit
    fits, fails = (tried, fails) if report['fits'] else (fits, tried)
  return fits * unit or None


class Compiler:
  """Compiles for a topology, in a process of its own."""

  def __init__(self, topology: str):
    """Takes the topology's name; UserError if the compiler does not know it."""
    name, _, size = topology.partition(':')
    axes = [int(axis) for axis in size.split('x')]
    bounds = {'chips_per_host_bounds': (*axes, 1)[:3]} if 1 in axes[:2] else {}
    try:
      described = topologies.get_topology_desc(topology, platform='tpu', **bounds)
    except Exception as error:  # of the compiler
      reason = ' '.join(str(error).split())[:200]
      raise UserError(
        f'--topology={topology}: the compiler describes none ({reason}): use another size, such as'
        f' {name}:{"2x4" if name[-1] == "e" else "2x2x1"}'
      ) from None
    self._devices = Devices(list(described.devices))
    # Of a v4 each core is a device of its own.
    self._chip = chips.TPUS[name].part(self._devices.global_count // math.prod(axes))
    self._topology = topology

  def compile(self, config: dict) -> dict[str, Any]:
    """Compiles the step of a config, as `config.to_json` gives it; what `estimate` returns."""
    read = configs.from_json(config)
    check_training_batch(read, self._devices)
    table = nets.table_of(read, read.data.num_classes or 10)
    report: dict[str, Any] = {
      'topology': self._topology,
      'devices': self._devices.global_count,
      'batch_size': read.batch_size,
      'memory_limit': int(self._chip.memory),
      'versions': {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')},
    }
    try:
      compiled = compile_step(read, self._devices)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      return report | {'fits': False, 'memory_bytes': _wanted_memory(str(error))}
    memory: Any = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    taken += memory.output_size_in_bytes - memory.alias_size_in_bytes
    shape = (read.input.crop, read.input.crop, 3)
    flop = roofline.training_flop(table, shape) * read.batch_size / self._devices.global_count
    cost: Any = compiled.cost_analysis() or {}
    report |= {
      'fits': taken <= self._chip.memory,
      'memory_bytes': taken,
      'temporary_bytes': memory.temp_size_in_bytes,
      'traffic_bytes': int(cost.get('bytes accessed', 0)),
      'arithmetic_cycles': round(flop / self._chip.peak * self._chip.clock),
    }
    program = Program(compiled.as_text() or '')
    report |= estimate(program, [row.name for row in table], self._chip, report['devices'])
    report['estimated_images_per_second'] = report['batch_size'] / report['estimated_seconds']
    return report


def estimate(program: Program, names: list[str], chip: chips.Chip, devices: int) -> dict[str, Any]:
  """Sums the cycles of a compiled step.

  Args:
    program: the step.
    names: of the layers.
    chip: what a device is.
    devices: how many there are.

  Returns:
    estimated_cycles, int, of a step on one device;
    layers, {layer or part: {'forward', 'backward'}} in cycles, which add up to that;
    collectives, [{'operation', 'count', 'bytes'}], of a device's results;
    without_estimate, {operation: {'count', 'cycles'}}, part of the cycles;
    unknown_loops, names of loops counted once because it cannot be told how often they come round;
    collective_seconds, those which nothing hides, besides what they are in the cycles;
    estimated_seconds, of a step.
  """
  cycles = {
    name: {'forward': 0, 'backward': 0} for name in (*names, *_PARTS, 'collectives', 'other')
  }
  sent: dict[str, list[int]] = {}
  missing: dict[str, dict[str, int]] = {}
  begun: dict[str, int] = {}  # asynchronous collectives, and the cycles up to them
  total, exposed = 0, 0.0
  for instruction, times, scope in program.executed():
    each = instruction.estimated_cycles
    if instruction.is_free:
      begun[instruction.name] = total
      continue
    if each is None:
      needs = (
        program.flops(instruction) / chip.peak,
        program.moved_bytes(instruction) / chip.bandwidth,
      )
      each = math.ceil(max(needs) * chip.clock)
      found = missing.setdefault(instruction.opcode, {'count': 0, 'cycles': 0})
      found['count'] += times
      found['cycles'] += times * each
    if operation := instruction.collective:
      size = array_bytes(instruction.result)
      count, sum_of_bytes = sent.get(operation, (0, 0))
      sent[operation] = [count + times, sum_of_bytes + times * size]
      share = SENT_PER_BYTE.get(operation, lambda n: 1)(devices)
      start = begun.get(instruction.operand_names[0], total) if instruction.operand_names else total
      hidden = (total - start) * ('-done' in instruction.opcode) + each * times
      exposed += max(0.0, times * size * share / (2 * chip.link_rate) - hidden / chip.clock)
    words = re.findall(r'[\w.\-]+', scope)
    layer = next((word for word in words if word in cycles), 'other')
    layer = 'collectives' if instruction.collective else layer
    cycles[layer]['backward' if 'transpose(' in scope else 'forward'] += times * each
    total += times * each
  return {
    'estimated_cycles': total,
    'layers': {name: found for name, found in cycles.items() if any(found.values())},
    'collectives': [
      {'operation': name, 'count': count, 'bytes': size} for name, (count, size) in sent.items()
    ],
    'without_estimate': {name: found for name, found in missing.items() if found['cycles']},
    'unknown_loops': sorted(program.unknown_loops),
    'collective_seconds': exposed,
    'estimated_seconds': total / chip.clock + exposed,
  }


def lines(report: dict[str, Any]) -> list[str]:
  """What `compile_for` returns, for people."""
  memory, limit = report['memory_bytes'], si(report['memory_limit'], 'B')
  versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items())
  each = report['batch_size'] // report['devices']
  found = [
    f'topology      {report["topology"]}: {report["devices"]} devices with {each:,} images each,'
    f' compiled by {versions}; nothing was run',
  ]
  if not report['fits']:
    most = report['largest_batch']
    fitting = (
      f'batch_size={most:,} fits, the largest tried' if most else 'no smaller batch tried does'
    )
    wanted = si(memory, 'B') if memory else 'more'
    return [*found, f'fits          no: {wanted} a device, of {limit}; {fitting}']
  cycles, chip = report['estimated_cycles'], chips.TPUS[report['chip']]
  collective = [
    f'{each["count"]} {each["operation"]} of {si(each["bytes"], "B")}'
    for each in report['collectives']
  ]
  missing = sorted(report['without_estimate'].items(), key=lambda found: -found[1]['cycles'])
  listed = ', '.join(
    f'{found["count"]} {name} ({_millions(found["cycles"])})' for name, found in missing[:_LISTED]
  )
  listed += f' and {len(missing) - _LISTED} smaller kinds' * (len(missing) > _LISTED)
  floors = report['arithmetic_cycles'], report['traffic_bytes'] / chip.bandwidth * chip.clock
  found += [
    f'fits          yes: {si(memory, "B")} a device, of {limit}, of which'
    f' {si(report["temporary_bytes"], "B")} only while a step runs',
    f'collectives   {", ".join(collective) or "none"} a step',
    f"cycles        {_millions(cycles)} million a step is the compiler's estimate; at the chip's"
    f' peak the products take {_millions(floors[0])}, and all bytes as if nothing stayed on the'
    f' chip {_millions(floors[1])}',
    *[f'              of which without its estimate, in millions: {listed}'] * bool(missing),
    *[f'              loops counted once: {", ".join(report["unknown_loops"])}']
    * bool(report['unknown_loops']),
    f'speed         {report["estimated_images_per_second"]:,.0f} images/s is an estimate, at'
    f' {chip.clock / 1e9:.2f} GHz and with {1e3 * report["collective_seconds"]:.2f} ms a step of'
    ' collectives; it was not measured',
  ]
  return [*found, '', *layer_table(report)]


def layer_table(report: dict[str, Any]) -> list[str]:
  """Cycles by layer and pass, as the compiler estimates them."""
  total = report['estimated_cycles']
  rows = [('million cycles', 'forward', 'backward', 'share')]
  for name, passes in report['layers'].items():
    share = f'{sum(passes.values()) / total:.1%}'
    rows.append((name, _millions(passes['forward']), _millions(passes['backward']), share))
  sums = (sum(each[way] for each in report['layers'].values()) for way in ('forward', 'backward'))
  return aligned([*rows, ('in all', *map(_millions, sums), '100.0%')])


def _wanted_memory(message: str) -> int | None:
  """Bytes that a compiler says it would need, of temporaries at least; None if it does not say."""
  found = re.search(r'\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of', message)
  number, unit = [part for part in found.groups() if part] if found else ('0', 'K')
  return round(float(number) * 2 ** {'K': 10, 'M': 20, 'G': 30}[unit]) or None


def _millions(cycles: float) -> str:
  return f'{cycles / 1e6:,.2f}'
