"""launch/slurm.sbatch on a real Slurm, which .ci/install_slurm starts; without one these skip."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, wait_until
from helpers.same_ends import FLAGS, assert_same_ends

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith('SLURM')}
ENVIRONMENT |= {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
  'PYTHONPATH': str(ROOT),
  'http_proxy': 'http://127.0.0.1:9',  # as on many clusters; nothing is there
}


@pytest.fixture(scope='session', autouse=True)
def environment(tmp_path_factory):
  """The jobs' `python` is that of the tests, also where the checkout has a .venv."""
  folder = tmp_path_factory.mktemp('venv')
  (folder / 'bin').mkdir()
  (folder / 'bin/activate').write_text(f'PATH={Path(sys.executable).parent}:$PATH\n')
  ENVIRONMENT['VENV'] = str(folder)


def up():
  if not shutil.which('scontrol'):
    return False
  shown = subprocess.run(['scontrol', 'show', 'config'], capture_output=True, text=True).stdout
  # Never a cluster that is not for tests.
  return bool(re.search(r'ClusterName\s*= alexnet-jax-test', shown)) and ' is UP' in shown


pytestmark = [
  pytest.mark.slow,
  pytest.mark.slurm,
  pytest.mark.skipif(not up(), reason='no Slurm for tests is running: see .ci/install_slurm'),
]


class Job:
  """A job in the queue and its log."""

  def __init__(self, log, *words, **variables):
    self.log = log
    options = ['--parsable', '--ntasks-per-node=2', f'--output={log}', 'launch/slurm.sbatch']
    self.number = subprocess.run(
      ['sbatch', *options, *words],
      env=ENVIRONMENT | variables,
      cwd=ROOT,
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout.strip()

  def text(self):
    return self.log.read_text() if self.log.exists() else ''

  def signal(self, name):
    subprocess.run(['scancel', f'--signal={name}', self.number], check=True)

  def wait_for(self, pattern, starts=1):
    """Waits until the log of the last of so many starts has the pattern."""

    def found():
      parts = self.text().split('+ start ')[1:]
      return len(parts) == starts and re.search(pattern, parts[-1])

    wait_until(found, 900)

  def finish(self):
    """Waits for the end; returns the job's state."""
    command = ['scontrol', 'show', 'job', self.number]

    def state():
      shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
      return re.search(r'JobState=(\w+)', shown)[1]

    wait_until(
      lambda: state() not in ('PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING', 'REQUEUED'), 900
    )
    return state()


def test_job_that_was_stopped_twice_ends_with_the_same_bits(tmp_path):
  undisturbed = Job(tmp_path / 'undisturbed.log', *FLAGS, f'--workdir={tmp_path}/undisturbed')
  assert undisturbed.finish() == 'COMPLETED', undisturbed.text()
  for process in (1, 2):
    assert f'process {process}/2, 2 of 4 devices, cpu' in undisturbed.text()

  job = Job(tmp_path / 'job.log', *FLAGS, f'--workdir={tmp_path}/job')
  job.wait_for(' step [5-9]/47')
  job.signal('TERM')
  job.wait_for(r'resuming from step [\s\S]* step \d\d/47', starts=2)
  job.signal('USR1')
  assert job.finish() == 'COMPLETED', job.text()
  text = job.text()
  assert 'stopped by SIGTERM at step' in text and 'stopped by SIGUSR1 at step' in text
  assert text.count('exit code 75: queueing job') == 2 and text.count('+ start ') == 3
  assert_same_ends(tmp_path / 'undisturbed', tmp_path / 'job')


@pytest.fixture
def failing(tmp_path):
  """Variables with which `python` ends at once, with a given code."""

  def make(code):
    programs = tmp_path / 'venv/bin'
    programs.mkdir(parents=True)
    (programs / 'python').write_text(f'#!/bin/sh\nexit {code}\n')
    (programs / 'python').chmod(0o755)
    (programs / 'activate').write_text(f'PATH={programs}:$PATH\n')
    return {'VENV': str(tmp_path / 'venv'), 'TRIES': '2'}

  return make


@pytest.mark.parametrize(('code', 'starts'), [(2, 1), (3, 1), (1, 2), (75, 2)])
def test_only_what_may_go_better_is_repeated_and_not_for_ever(tmp_path, failing, code, starts):
  job = Job(tmp_path / 'log', f'--workdir={tmp_path}/run', **failing(code))
  assert job.finish() == 'FAILED'
  assert job.text().count('+ start ') == starts
  assert (f'exit code {code} and no new checkpoint in start 2' in job.text()) == (starts == 2)


@pytest.mark.parametrize(
  ('words', 'variables', 'said'),
  [
    ([], {}, '--workdir is missing'),
    (['--workdir=x'], {'VENV': '/nowhere'}, 'VENV=/nowhere is no virtual'),
  ],
)
def test_wrong_use_gets_one_line(tmp_path, words, variables, said):
  job = Job(tmp_path / 'log', *words, **variables)
  assert job.finish() == 'FAILED'
  assert said in job.text() and job.text().count('\n') == 1


@pytest.mark.parametrize('step', [[], ['srun', '--pty', '--ntasks=1']])
def test_single_process_in_an_interactive_allocation_does_not_wait(tmp_path, step):
  (tmp_path / 'file').touch()
  program = [sys.executable, '-m', 'alexnet_jax.main', *FLAGS, f'--workdir={tmp_path}/file/run']
  typed = shlex.join(['salloc', '--quiet', '--ntasks=2', *step, *program])
  done = subprocess.run(
    ['script', '--quiet', '--return', '--command', typed, '/dev/null'],  # salloc wants a terminal
    env=ENVIRONMENT,
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert 'process 1/1, 2 of 2 devices' in done.stdout
  assert 'cannot be written' in done.stdout and done.returncode == 2
