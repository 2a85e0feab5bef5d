"""A training step compiled for accelerators that are not here, by their own compiler.

Memory and cycles are the compiler's estimates, and nothing runs.  What is summed: `estimate.py`.
"""

import datetime
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.benchmarks import roofline, targets
from alexnet_jax.benchmarks.chips import CHIPS
from alexnet_jax.benchmarks.estimate import estimate, lines
from alexnet_jax.benchmarks.hlo import HloModule
from alexnet_jax.benchmarks.our_step import compile_step
from alexnet_jax.benchmarks.race import Options, Result
from alexnet_jax.benchmarks.worker import Contestant, start_worker
from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.terminal import Console, duration
from alexnet_jax.train import plan
from alexnet_jax.train.devices import check_training_batch

_TRIES = 4  # compilations in search of the largest batch that fits


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
  targets.find_chip(topology)
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
    with files.one_line_error(f'--json={json}'):
      files.write_json(json, report)


def estimate_step(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """The `compile` benchmark: what the compiler of an accelerator says of a config's training step.

  Arguments as those of `time_step.measure_step`; nothing is run.

  Raises:
    UserError: as `compile_for` does, or the batch does not fit the topology.
  """
  report = compile_for(config, options.topology, options.topology_timeout)
  net, dtype = nets.title(config.model), config.model.compute_dtype
  return Result(
    target='compile',
    title=f'{name}, net {net}, {dtype}, batch {config.batch_size:,}',
    lines=tuple(lines(report)),
    environment={
      'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'versions': report['versions'],
    },
    details={**report, 'config': configs.to_json(config)},
  )


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
  targets.find_chip(topology)
  advice = f'compile {topology} on a machine with more of it'
  child = Contestant(
    f'the compiler for {topology}', f'{__name__}:Compiler', targets.SETTINGS, advice=advice
  )

  def compiled(batch_size: int) -> dict[str, Any] | None:
    """None if it takes too long; the process must then be left alone."""
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
          return None
        console.progress(f'{title}, {duration(seconds)}', round(seconds), round(timeout))
    return worker.result()

  with start_worker(child, topology=topology) as worker:
    report = compiled(config.batch_size)
    if report is None:
      raise UserError(
        f'--topology={topology}: not compiled after {duration(timeout)}: raise'
        f' --topology_timeout={timeout:g}, in seconds'
      )
    report['largest_batch'] = config.batch_size if report['fits'] else None
    if not report['fits']:
      report['largest_batch'] = _largest_that_fits(config, report, compiled)
  return report


def _largest_that_fits(config, report: dict[str, Any], compiled) -> int | None:
  """Searches below a batch that does not fit, by `compiled`, in a few steps, each in time."""
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
    if report is None:
      break
    tried = report['batch_size'] // unit
    fits, fails = (tried, fails) if report['fits'] else (fits, tried)
  return fits * unit or None


class Compiler:
  """Compiles for a topology, in a process of its own."""

  def __init__(self, topology: str):
    """Takes the topology's name; UserError if the compiler does not know it."""
    self._devices = targets.describe(topology)
    self._topology, self._chip = topology, topology.partition(':')[0]

  def compile(self, config: dict) -> dict[str, Any]:
    """Compiles the step of a config, as `config.to_json` gives it; what `estimate` returns."""
    read = configs.from_json(config)
    check_training_batch(read, self._devices)
    chip, devices = CHIPS[self._chip], self._devices.global_count
    report: dict[str, Any] = {
      'topology': self._topology,
      'chip': self._chip,
      'devices': devices,
      'batch_size': read.batch_size,
      'memory_limit': int(chip.memory),
      'versions': targets.versions(self._chip),
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
    cost: Any = compiled.cost_analysis() or {}
    table, shape = nets.table_of(read, read.data.num_classes or 10), (read.input.crop,) * 2 + (3,)
    images = read.batch_size // devices
    flop = {name: images * each for name, each in roofline.layer_flop(table, shape).items()}
    report |= {
      'fits': taken <= chip.memory,
      'memory_bytes': taken,
      'temporary_bytes': memory.temp_size_in_bytes,
      'traffic_bytes': int(cost.get('bytes accessed', 0)),
      'product_flop': sum(flop.values()),
    }
    report |= estimate(HloModule(compiled.as_text() or ''), flop, chip, devices)
    if not chip.clock:  # XLA counts none there
      passes = report['layers'].values()
      report['traffic_bytes'] = sum(each['forward'] + each['backward'] for each in passes)
    report['estimated_images_per_second'] = report['batch_size'] / report['estimated_seconds']
    return report


def _wanted_memory(message: str) -> int | None:
  """Bytes that a compiler says it would need, of temporaries at least; None if it does not say."""
  found = re.search(r'\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of', message)
  number, unit = [part for part in found.groups() if part] if found else ('0', 'K')
  return round(float(number) * 2 ** {'K': 10, 'M': 20, 'G': 30}[unit]) or None
