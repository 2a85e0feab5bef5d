"""Commands in processes of their own, as users run them, and the configs they read."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'COLUMNS': '120'}
ENVIRONMENT['TFDS_DATA_DIR'] = '/absent'
ENVIRONMENT['PYTHONPATH'] = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'


def run(module, *words, folder=ROOT, stdin=None, **environment):
  """The finished process of `python -m module words` on one CPU device."""
  return subprocess.run(
    [sys.executable, '-m', module, *map(str, words)],
    cwd=folder,
    env=ENVIRONMENT | environment,
    input=stdin,
    capture_output=True,
    text=True,
    timeout=400,
  )


def wait_until(condition, seconds=240):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.05)


def error_line(process):
  """The one line in which a command was refused; progress may stand before it."""
  assert process.returncode == 2, process.stderr
  assert 'Traceback' not in process.stderr, process.stderr
  *before, last = process.stderr.strip().splitlines()
  assert last.startswith('error: ') and not any('error' in line for line in before), process.stderr
  return last


def get_config(name):
  """What a file in configs/ returns, for 'imagenet' or 'imagenet:paper'."""
  file, _, variant = name.partition(':')
  arguments = [variant] if variant else []
  return runpy.run_path(str(ROOT / 'configs' / f'{file}.py'))['get_config'](*arguments)
