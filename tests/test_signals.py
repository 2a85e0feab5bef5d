"""SIGTERM and SIGUSR1 end any command in one line, and the same command resumes it."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, run
from PIL import Image

pytestmark = pytest.mark.slow


def stopped(words, at, number):
  """Sends a signal when a line with `at` appears; returns the exit code and what was said."""
  with subprocess.Popen(
    [sys.executable, '-m', *words],
    env=ENVIRONMENT,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  ) as process:
    said = ''
    for line in process.stderr:
      said += line
      if at in line:
        process.send_signal(number)
        break
    said += process.stderr.read()
  return process.returncode, said


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_prepare_stops_and_goes_on(tmp_path, number):
  random = np.random.default_rng(0)
  for name in ('ant', 'bee'):
    (tmp_path / 'images' / name).mkdir(parents=True)
    pixels = random.integers(0, 256, (800, 800, 3), dtype=np.uint8)  # slow to decode
    Image.fromarray(pixels).save(tmp_path / 'images' / name / '0.png')
    for k in range(1, 60):
      os.link(tmp_path / 'images' / name / '0.png', tmp_path / 'images' / name / f'{k}.png')
  words = ('alexnet_jax.prepare', f'--config=configs/folder.py:{tmp_path / "images"}')
  code, said = stopped(words, 'preparing', number)
  assert code == 75, said
  assert said.splitlines()[-1] == (
    f'stopped by {signal.Signals(number).name}; the same command resumes it'
  )
  assert 'Traceback' not in said
  done = run(*words, '--verify')
  assert done.returncode == 0 and '96 training and 24 validation images' in done.stdout, done.stderr


HANG_UP = """
import os, pathlib, pty, sys
log, *command = sys.argv[1:]
process, terminal = pty.fork()
if not process:
  os.execv(command[0], command)
while os.read(terminal, 4096):
  if os.path.exists(log) and '  step 5/' in pathlib.Path(log).read_text():
    break
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


@pytest.mark.slow
def test_a_terminal_that_hangs_up_while_training(tmp_path):
  """The kernel sends SIGHUP, and from then on every write to the terminal fails."""
  log = tmp_path / 'run' / 'train.log'
  words = ('--config=configs/digits.py', '--config.epochs=100', '--config.log.every_steps=1')
  command = [sys.executable, '-m', 'alexnet_jax.main', *words, f'--workdir={tmp_path}/run']
  done = subprocess.run(
    [sys.executable, '-c', HANG_UP, log, *command],
    env=ENVIRONMENT | {'TERM': 'xterm'},
    timeout=300,
    check=False,
  )
  assert done.returncode == 75
  (step,) = os.listdir(tmp_path / 'run' / 'checkpoints' / 'last')
  assert f'  step {int(step):,}/' in log.read_text().splitlines()[-1]
