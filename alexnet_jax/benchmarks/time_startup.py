"""The startup benchmark: from a command to its first finished training step, and `--help`."""

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
from alexnet_jax.benchmarks.rounds import Options, Result, say, seconds_table
from alexnet_jax.data import sources, writer
from alexnet_jax.data.preparation import encoding
from alexnet_jax.errors import UserError
from alexnet_jax.run.folder import RunFolder

_LIMIT_SECONDS = 600
_EXAMPLES = 512
# The config of the benchmark's own command line, as a file.
_CONFIG_FILE = 'from alexnet_jax.config import from_json\nget_config = lambda: from_json({!r})\n'


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures how long training takes to start, with and without compiled programs on disk.

  Images are generated and stored beforehand; a real run has its store as well.  Arguments as those
  of `time_step.compare`.

  Raises:
    UserError: a run ended before its first step.
  """
  seconds = {'nothing compiled yet': [], 'compiled before': [], '--help': []}
  cold, warm, usage = seconds.values()
  main = [sys.executable, '-m', 'alexnet_jax.main']
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-startup-') as temporary:
    folder = Path(temporary)
    file, run = folder / 'config.py', RunFolder(folder / 'run')
    plain = configs.to_json(_with_store(config, folder))
    file.write_text(_CONFIG_FILE.format(plain), encoding='utf-8')
    command = [*main, f'--config={file}', f'--workdir={run.path}']
    for number in range(options.rounds):
      say(f'start {number + 1} of {options.rounds}')
      for times in (cold, warm):
        shutil.rmtree(run.path, ignore_errors=True)
        times.append(_first_step_seconds(command, run.metrics, folder / f'programs-{number}'))
      began = time.perf_counter()
      subprocess.run([*main, '--help'], capture_output=True, check=False)
      usage.append(time.perf_counter() - began)
    environment = files.read_json(run.environment)
  return Result(
    target='startup',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, to the first finished step',
    lines=seconds_table(seconds),
    environment=environment,
    details={'seconds': seconds, 'config': plain},
  )


def _first_step_seconds(command: list[str], metrics: Path, programs: Path) -> float:
  """Starts training and kills it when `metrics` has a line, which follows the first step.

  Raises:
    UserError: it ended before.
  """
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  with tempfile.TemporaryFile('w+', encoding='utf-8') as output:
    began = time.perf_counter()
    process = subprocess.Popen(
      command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    try:
      while not (metrics.exists() and b'\n' in metrics.read_bytes()):
        seconds = time.perf_counter() - began
        if process.poll() is not None or seconds > _LIMIT_SECONDS:
          output.seek(0)
          last = output.read().strip().splitlines()[-1:] or ['no message']
          raise UserError(f'no training step within {seconds:.0f} s: {last[0]}')
        time.sleep(0.01)
      return time.perf_counter() - began
    finally:
      process.kill()
      process.wait()


def _with_store(config: ml_collections.ConfigDict, folder: Path) -> ml_collections.ConfigDict:
  """The config with a store of generated images in the folder, unless it needs no store."""
  config = config.copy_and_resolve_references()
  if config.data.source == 'digits':
    return config
  generated = config.data.copy_and_resolve_references()
  generated.update(source='synthetic', synthetic_examples=_EXAMPLES)
  writer.write_store(
    sources.open_source(generated),
    folder / 'store',
    image_size=config.data.image_size,
    resize=config.data.resize,
    encoding=encoding(config.data),
  )
  # A store is enough where the data set that it was made from is not at hand.
  if config.data.source == 'synthetic':
    config.data.source = 'folder'
  config.data.store, config.data.dir = str(folder / 'store'), str(folder / 'absent')
  return config
