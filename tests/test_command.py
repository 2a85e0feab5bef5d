"""What all commands share: help, paths, repeated flags, poor terminals, and other systems."""

import os
import signal
import subprocess
import sys

import pytest
from helpers.commands import ENVIRONMENT, ROOT
from helpers.tiny_data import write_images


def run(*words, **environment):
  return subprocess.run(
    [sys.executable, *map(str, words)],
    cwd=ROOT,
    env=ENVIRONMENT | environment,
    capture_output=True,
    text=True,
    errors='replace',
    timeout=600,
  )


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_is_what_was_asked_for(flag):
  done = run('-m', 'alexnet_jax.summarize', flag)
  assert done.returncode == 0 and done.stderr == ''
  assert '--config:' in done.stdout and '--ablation:' in done.stdout


def test_a_home_is_expanded(tmp_path):
  done = run('-m', 'alexnet_jax.checkpoints', '--workdir=~/run', HOME=str(tmp_path))
  assert done.returncode == 2 and f' {tmp_path}/run/checkpoints: ' in done.stderr


def test_an_ablation_may_be_given_twice():
  config = '--config=configs/cifar10.py:18pct'
  once = run('-m', 'alexnet_jax.summarize', config, '--ablation=no_lrn,tanh')
  twice = run('-m', 'alexnet_jax.summarize', config, '--ablation=no_lrn', '--ablation=tanh')
  assert once.returncode == 0 and 'net cifar_18pct (no_lrn, tanh)' in once.stdout
  assert twice.stdout == once.stdout


SCRIPT = """
import os, signal, sys
from alexnet_jax import cli

def main():
  print('\u2588 done')
  {}

sys.exit(cli.run(main))
"""


def test_a_terminal_that_cannot_show_it():
  done = run('-c', SCRIPT.format('pass'), PYTHONIOENCODING='ascii')
  assert (done.returncode, done.stdout, done.stderr) == (0, '? done\n', '')


def test_a_terminal_that_hangs_up():
  hang_up = 'os.kill(os.getpid(), signal.SIGHUP)'
  done = run('-c', SCRIPT.format(hang_up))
  assert done.returncode == 75 and 'stopped by SIGHUP' in done.stderr
  previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit it, as under nohup
  try:
    assert run('-c', SCRIPT.format(hang_up)).returncode == 0
  finally:
    signal.signal(signal.SIGHUP, previous)


# Systems that lack what Linux has: macOS does all the same, Windows is told in one line.

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


@pytest.mark.slow
def test_macos_trains_and_launches(tmp_path):
  """Photos become a store of bytes, or of JPEG, which is read; processes start others."""
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site/sitecustomize.py').write_text(MACOS)
  macos = f'{tmp_path}/site{os.pathsep}{ROOT}'  # also for the processes that these start
  for seed, kind in enumerate(('ant', 'bee')):
    write_images(tmp_path / 'photos' / kind, 10, seed=seed, suffix='.jpg')
  fields = 'model.net=digits data.image_size=32 input.crop=28 epochs=1 batch_size=8'.split()
  words = [f'--config=folder:{tmp_path}/photos', *(f'--config.{field}' for field in fields)]
  lacks = 'import ctypes, os; ctypes.CDLL(None).prctl'
  assert 'AttributeError: prctl' in run('-c', lacks, PYTHONPATH=macos).stderr
  for encoding, command in (
    ('raw', ['-m', 'alexnet_jax.main']),
    ('jpeg', ['launch/local.py', '-n', '2', '--']),
  ):
    workdir = tmp_path / command[-1]
    flags = [f'--config.data.store={tmp_path}/{encoding}', f'--config.data.encoding={encoding}']
    done = run(*command, f'--workdir={workdir}', *words, *flags, PYTHONPATH=macos)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(workdir.rglob('results.json'))


COMMANDS = (
  'main predict evaluate prepare diagnose benchmark summarize convert report launch/sweep.py'
  ' launch/local.py'
)


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS.split())
def test_windows_is_told_in_one_line(command):
  script = command.endswith('.py')
  start = f'run_path({command!r}' if script else f'run_module({"alexnet_jax." + command!r}'
  hidden = 'import runpy, sys; sys.modules["fcntl"] = None'
  done = run('-c', f'{hidden}; runpy.{start}, {{}}, "__main__")')
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr == 'error: this system has no fcntl: use Linux, macOS, or WSL\n'
