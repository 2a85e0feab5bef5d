"""Systems that lack what Linux has: macOS does all the same, Windows is told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

# macOS has neither, nor /proc.
MACOS = """
import builtins, ctypes, os, pathlib

if hasattr(os, 'process_cpu_count'):
  os.process_cpu_count = os.cpu_count
for name in ('sched_getaffinity', 'sched_setaffinity'):
  if hasattr(os, name):
    delattr(os, name)


class CDLL(ctypes.CDLL):

  def __getattr__(self, name):
    if name in ('prctl', 'mallopt'):
      raise AttributeError(name)
    return super().__getattr__(name)


ctypes.CDLL = CDLL
opened = pathlib.Path.read_text


def read_text(self, *args, **kwargs):
  if self.is_relative_to('/proc'):
    raise FileNotFoundError(self)
  return opened(self, *args, **kwargs)


pathlib.Path.read_text = read_text
"""


def run(*words, site=None):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  if site is not None:  # also in the processes that this one starts
    environment['PYTHONPATH'] = f'{site}{os.pathsep}{ROOT}'
  return subprocess.run(
    [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
  )


@pytest.fixture
def macos(tmp_path):
  """A folder that, on PYTHONPATH, takes from Python what macOS does not have."""
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site/sitecustomize.py').write_text(MACOS)
  return tmp_path / 'site'


@pytest.mark.slow
def test_macos_trains_and_launches(tmp_path, macos):
  """Photos become a store of bytes, or of JPEG, which is read; processes start others."""
  rng = np.random.default_rng(0)
  for kind in ('ant', 'bee'):
    (tmp_path / 'photos' / kind).mkdir(parents=True)
    for i in range(10):
      pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'photos' / kind / f'{i}.jpg')
  words = [
    f'--config=folder:{tmp_path}/photos',
    '--config.model.net=digits',
    '--config.data.image_size=32',
    '--config.input.crop=28',
    '--config.epochs=1',
    '--config.batch_size=8',
  ]
  lacks = 'import ctypes, os; ctypes.CDLL(None).prctl'
  assert 'AttributeError: prctl' in run('-c', lacks, site=macos).stderr
  for encoding, command in (
    ('raw', ['-m', 'alexnet_jax.main']),
    ('jpeg', ['launch/local.py', '-n', '2', '--']),
  ):
    workdir = tmp_path / command[-1]
    flags = [f'--config.data.store={tmp_path}/{encoding}', f'--config.data.encoding={encoding}']
    done = run(*command, f'--workdir={workdir}', *words, *flags, site=macos)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(workdir.rglob('results.json'))


COMMANDS = [
  *('main', 'predict', 'evaluate', 'prepare', 'diagnose', 'benchmark', 'summarize'),
  *('convert', 'report'),
]


@pytest.mark.slow
@pytest.mark.parametrize('command', [*COMMANDS, 'launch/sweep.py', 'launch/local.py'])
def test_windows_is_told_in_one_line(command):
  script = command.endswith('.py')
  start = f'run_path({command!r}' if script else f'run_module({"alexnet_jax." + command!r}'
  hidden = 'import runpy, sys; sys.modules["fcntl"] = None'
  done = run('-c', f'{hidden}; runpy.{start}, {{}}, "__main__")')
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr == 'error: this system has no fcntl: use Linux, macOS, or WSL\n'
