"""What all commands share: help, paths, repeated flags, signals, poor terminals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.run.claim import with_workdir


def run(*words, **environment):
  return subprocess.run(
    [sys.executable, *words],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    errors='replace',
    check=False,
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


def test_the_command_for_another_folder():
  command = with_workdir('python -m x --config=c.py "--workdir=runs/a b" --seed=3', Path('b c'))
  assert command == "python -m x --config=c.py --seed=3 '--workdir=b c'"


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
