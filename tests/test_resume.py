"""A run that was stopped and resumed ends with the same bits as one that was not."""

import json
import signal
import subprocess
import sys

import pytest
from helpers import commands
from helpers.same_ends import assert_same_ends, final

from alexnet_jax.run.metrics import read_metrics

pytestmark = pytest.mark.slow

COMMAND = [
  'alexnet_jax.main',
  '--config=configs/digits.py',
  '--config.epochs=2',
  '--config.data.train_examples=300',
  '--config.checkpoint.every_epochs=0.4',
  '--config.eval.every_epochs=1',
  '--config.log.every_steps=1',
]


def run(workdir, *flags):
  return commands.run(*COMMAND, f'--workdir={workdir}', *flags)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  finished = run(workdir)
  assert finished.returncode == 0, finished.stderr
  return workdir


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGKILL])
def test_resumed_run_is_equal_to_the_bit(undisturbed, tmp_path, kind):
  workdir = tmp_path / 'run'
  with subprocess.Popen(
    [sys.executable, '-m', *COMMAND, f'--workdir={workdir}'],
    env=commands.ENVIRONMENT,
    stderr=subprocess.PIPE,
    text=True,
    stdout=subprocess.DEVNULL,
  ) as process:
    for line in process.stderr:
      if 'step 5/' in line:
        process.send_signal(kind)
        break
    process.stderr.read()
  assert process.returncode == (75 if kind == signal.SIGTERM else -signal.SIGKILL)
  assert not (workdir / 'results.json').exists()

  finished = run(workdir)
  assert finished.returncode == 0, finished.stderr
  assert 'resuming from step' in finished.stderr
  assert final(workdir)['step'] == 10
  assert_same_ends(undisturbed, workdir)

  def losses(folder):
    return {r['step']: r['train/loss'] for r in read_metrics(folder) if 'train/loss' in r}

  assert losses(workdir) == losses(undisturbed)


def test_finished_run_says_so_and_shows_its_results(undisturbed):
  before = (undisturbed / 'results.json').read_bytes()
  again = run(undisturbed)
  assert again.returncode == 0
  assert 'is finished' in again.stdout and 'top-1 error' in again.stdout
  assert (undisturbed / 'results.json').read_bytes() == before


def test_workdir_of_another_config_is_refused(undisturbed):
  before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*') if path.is_file()}
  refused = run(undisturbed, '--config.optimizer.learning_rate=0.5')
  assert refused.returncode == 2
  first, error = refused.stderr.strip().splitlines()
  assert first.startswith('process 1/1')
  assert 'optimizer.learning_rate: 0.05 -> 0.5' in error
  assert '--allow_change=optimizer.learning_rate' in error
  assert f'--workdir={undisturbed}-2' in error
  after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*') if path.is_file()}
  assert after == before


def test_a_change_that_is_allowed_by_name_is_recorded(tmp_path):
  workdir = tmp_path / 'run'
  assert run(workdir, '--config.epochs=1').returncode == 0
  more = ('--config.optimizer.learning_rate=0.01', '--config.log.every_steps=2')
  refused = run(workdir, *more, '--allow_change=optimizer.learning_rat')
  assert refused.returncode == 2
  assert 'did you mean optimizer.learning_rate?' in refused.stderr.splitlines()[-1]
  done = run(workdir, *more, '--allow_change=optimizer.learning_rate,epochs')
  assert done.returncode == 0, done.stderr
  assert 'changed since the run began: optimizer.learning_rate: 0.05 -> 0.01' in done.stderr
  assert 'resuming from step 5' in done.stderr
  rates = {r['step']: r['learning_rate'] for r in read_metrics(workdir) if 'learning_rate' in r}
  assert max(rates[step] for step in range(1, 6)) > 0.015
  assert max(rates[step] for step in rates if step > 5) <= 0.01
  (line,) = (workdir / 'changes.jsonl').read_text().splitlines()
  assert json.loads(line)['changes'] == {
    'epochs': [1.0, 2.0],
    'log.every_steps': [1, 2],
    'optimizer.learning_rate': [0.05, 0.01],
  }


def test_two_runs_never_write_to_the_same_folder(tmp_path):
  workdir = tmp_path / 'run'
  with subprocess.Popen(
    [sys.executable, '-m', *COMMAND, f'--workdir={workdir}', '--config.epochs=200'],
    env=commands.ENVIRONMENT,
    stderr=subprocess.PIPE,
    text=True,
    stdout=subprocess.DEVNULL,
  ) as first:
    for line in first.stderr:
      if 'step 1/' in line:
        break
    second = run(workdir, '--config.epochs=200')
    first.kill()
  assert second.returncode == 2
  assert f'is in use by process {first.pid} on ' in second.stderr.splitlines()[-1]


def test_training_never_imports_tensorflow(tmp_path):
  script = """
import pathlib, runpy, sys
from alexnet_jax.train import loop
config = runpy.run_path('configs/digits.py')['get_config']()
config.epochs = 0.1
loop.train(config, pathlib.Path(sys.argv[1]), command='test')
assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules
"""
  command = [sys.executable, '-c', script, tmp_path / 'run']
  subprocess.run(command, env=commands.ENVIRONMENT, cwd=commands.ROOT, check=True, timeout=200)
