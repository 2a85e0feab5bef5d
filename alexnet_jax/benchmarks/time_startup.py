"""The startup benchmark: from a command to its first finished training step, and `--help`."""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.benchmarks.race import Options, Result, say, seconds_table
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.run.folder import RunFolder

_EXAMPLES = 512
# The config of the benchmark's own command line, as a file.
_CONFIG_FILE = 'from alexnet_jax.config import from_json\nget_config = lambda: from_json({!r})\n'


def measure_startup(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures how long training takes to start, with and without compiled programs on disk.

  Images are generated and stored beforehand; a real run has its store as well.  Arguments as those
  of `time_step.measure_step`.

  Raises:
    UserError: a run ended before its first step.
  """
  seconds = collections.defaultdict[str, list[float]](list)
  main = [sys.executable, '-m', 'alexnet_jax.main']
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-startup-') as temporary:
    folder = Path(temporary)
    file, run = folder / 'config.py', RunFolder(folder / 'run')
    config = config.copy_and_resolve_references()
    if config.data.source != 'digits':
      store = str(folder / 'store')
      config.data.update(source='synthetic', synthetic_examples=_EXAMPLES, store=store)
      prepare_store(config.data)
    plain = configs.to_json(config)
    file.write_text(_CONFIG_FILE.format(plain), encoding='utf-8')
    command = [*main, f'--config={file}', f'--workdir={run.path}']
    for number in range(options.rounds):
      say(f'start {number + 1} of {options.rounds}')
      for what in ('nothing compiled yet', 'compiled before'):
        shutil.rmtree(run.path, ignore_errors=True)
        took = _first_step_seconds(command, run.metrics, folder / f'programs-{number}')
        seconds[what].append(took)
      began = time.perf_counter()
      subprocess.run([*main, '--help'], stdout=subprocess.DEVNULL)
      seconds['--help'].append(time.perf_counter() - began)
    environment = files.read_json(run.environment)
  return Result(
    target='startup',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, to the first finished step',
    lines=seconds_table(seconds),
    environment=environment,
    details={'seconds': dict(seconds), 'config': plain},
  )


def _first_step_seconds(command: list[str], metrics: Path, programs: Path) -> float:
  """Starts training and kills it when `metrics` has a line, which follows the first step."""
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  began = time.perf_counter()
  with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=2) as process:
    try:
      while not (metrics.exists() and b'\n' in metrics.read_bytes()):
        if process.poll() is not None:
          raise UserError('training ended before its first step, as it says above')
        time.sleep(0.01)
      return time.perf_counter() - began
    finally:
      process.kill()
