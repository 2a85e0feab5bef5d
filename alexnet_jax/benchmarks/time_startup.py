"""The startup benchmark: from a command to its first finished training step, and `--help`."""

import contextlib
import json
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
from alexnet_jax.benchmarks.rounds import Figures, Options, say, seconds_table
from alexnet_jax.data import sources, writer
from alexnet_jax.data.preparation import encoding
from alexnet_jax.errors import UserError
from alexnet_jax.run.folder import RunFolder

COLD, WARM, HELP = 'nothing compiled yet', 'compiled before', '--help'

_LIMIT_SECONDS = 600
_EXAMPLES = 512
# A file that says what a config has become: its own, with all that the command line changed.
_CONFIG_FILE = """import json

from alexnet_jax.config import from_json


def get_config():
  return from_json(json.loads({!r}))
"""


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Figures:
  """Measures how long training takes to start, with and without compiled programs on disk.

  Images are generated and stored beforehand; a real run has its store as well.

  Args:
    name: of the config, for the title.
    config: validated.
    options: how often.

  Raises:
    UserError: a run ended before its first step.
  """
  seconds = {COLD: [], WARM: [], HELP: []}
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-startup-') as temporary:
    folder = Path(temporary)
    file, workdir = folder / 'config.py', folder / 'run'
    plain = configs.to_json(_with_store(config, folder))
    file.write_text(_CONFIG_FILE.format(json.dumps(plain)), encoding='utf-8')
    for number in range(options.rounds):
      say(f'start {number + 1} of {options.rounds}')
      for state in (COLD, WARM):
        seconds[state].append(first_step_seconds(file, workdir, folder / f'programs-{number}'))
      seconds[HELP].append(_help_seconds())
    environment = files.read_json(RunFolder(workdir).environment)
  return Figures(
    target='startup',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, to the first finished step',
    lines=seconds_table(seconds),
    environment=environment,
    details={'seconds': seconds, 'config': plain},
  )


def first_step_seconds(config: Path, workdir: Path, programs: Path) -> float:
  """Starts training in an empty folder and kills it after its first finished step.

  Args:
    config: config file.
    workdir: folder of the run; removed first.
    programs: folder of compiled programs.

  Raises:
    UserError: it ended before.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  metrics, errors = RunFolder(workdir).metrics, workdir.with_suffix('.stderr')
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  command = [sys.executable, '-m', 'alexnet_jax.main', f'--config={config}', f'--workdir={workdir}']
  with open(errors, 'w', encoding='utf-8') as stderr:
    began = time.perf_counter()
    process = subprocess.Popen(
      command, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
    )
  try:
    while not _has_line(metrics):
      seconds = time.perf_counter() - began
      if process.poll() is not None or seconds > _LIMIT_SECONDS:
        last = errors.read_text(encoding='utf-8').strip().splitlines()[-1:] or ['no message']
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
  generated.source, generated.synthetic_examples = 'synthetic', _EXAMPLES
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


def _has_line(file: Path) -> bool:
  with contextlib.suppress(OSError):
    return b'\n' in file.read_bytes()
  return False


def _help_seconds() -> float:
  began = time.perf_counter()
  command = [sys.executable, '-m', 'alexnet_jax.main', '--help']
  subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
  return time.perf_counter() - began
