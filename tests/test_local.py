"""launch/local.py: several processes on this machine, watched over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, wait_until
from helpers.same_ends import FLAGS, assert_same_ends

pytestmark = pytest.mark.slow

ENVIRONMENT = {name: value for name, value in os.environ.items() if 'CUDA' not in name}
ENVIRONMENT |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
LOCAL = [sys.executable, str(ROOT / 'launch/local.py')]

# Stands for alexnet_jax.main where only the supervisor is under test: does what --do says.
TRAINER = """
import os, pathlib, signal, sys, time
flags = dict(word[2:].split('=', 1) for word in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
index = int(os.environ.get('JAX_PROCESS_ID', 0))
with open(workdir / f'starts-{index}', 'a') as file:
  file.write(f'{os.getpid()}\\n')
start = len((workdir / f'starts-{index}').read_text().split())
def saved(number):
  (workdir / 'checkpoints/last' / str(number)).mkdir(parents=True)
def end(number, frame):
  print('got', signal.Signals(number).name, flush=True)
  sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
  signal.signal(number, end)
print(f'process {index} start {start}', flush=True)
exec(flags['do'])
"""


@pytest.fixture
def place(tmp_path):
  """A folder in which `python -m alexnet_jax.main` is the stand-in."""
  (tmp_path / 'alexnet_jax').mkdir()
  (tmp_path / 'alexnet_jax/__init__.py').touch()
  (tmp_path / 'alexnet_jax/main.py').write_text(TRAINER)
  (tmp_path / 'run').mkdir()
  return tmp_path


def start(place, count, do, *options, **variables):
  command = [*LOCAL, '-n', str(count), *options, '--', '--workdir=run', f'--do={do}']
  output = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  return subprocess.Popen(command, cwd=place, env=ENVIRONMENT | variables, **output)


def run(place, count, do, *options, **variables):
  job = start(place, count, do, *options, **variables)
  output, errors = job.communicate(timeout=120)
  return job.returncode, output, errors


def starts(place, index=0):
  return [int(word) for word in (place / f'run/starts-{index}').read_text().split()]


def alive(process):
  try:
    return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_each_process_knows_its_place_and_has_a_log(place):
  do = (
    'import json; names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "XLA_FLAGS"];'
    'print(json.dumps([os.environ.get(name) for name in names]))'
  )
  code, output, _ = run(place, 1, do)
  assert code == 0 and 'null, null' in output  # a single one finds out by itself about a job
  (place / 'run/logs/process-0.log').unlink()
  (place / 'run/starts-0').unlink()
  code, output, _ = run(place, 2, do, '--devices_per_process=3')
  assert code == 0
  logs = [(place / f'run/logs/process-{index}.log').read_text() for index in range(2)]
  assert output == logs[0]
  (first, facts), (second, same) = (log.splitlines() for log in logs)
  assert (first, second) == ('process 0 start 1', 'process 1 start 1')
  assert facts == same and '"127.0.0.1:' in facts and '"2"' in facts
  assert '"--xla_force_host_platform_device_count=3"' in facts


def test_gpus_are_shared_out(place):
  (place / 'nvidia-smi').write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: stand-in"; done')
  (place / 'nvidia-smi').chmod(0o755)
  path = {'PATH': f'{place}:{os.environ["PATH"]}', 'JAX_PLATFORMS': 'cuda'}
  show = 'print(os.environ["CUDA_VISIBLE_DEVICES"])'
  for visible, shares in (({}, ['0,1', '2,3']), ({'CUDA_VISIBLE_DEVICES': '4,5,6'}, ['4', '5'])):
    assert run(place, 2, show, **path, **visible)[0] == 0
    logs = [place / f'run/logs/process-{index}.log' for index in range(2)]
    assert [log.read_text().split()[-1] for log in logs] == shares
  code, _, errors = run(place, 3, '', '--devices_per_process=2', **path)
  assert code == 2 and 'lower -n' in errors and errors.count('\n') == 1


@pytest.mark.parametrize('number', [2, 3])
def test_what_would_fail_again_is_not_repeated(place, number):
  code, _, _ = run(place, 2, f'time.sleep(0 if index else 60); sys.exit({number})')
  assert code == number
  assert len(starts(place)) == len(starts(place, 1)) == 1


@pytest.mark.parametrize('end', ['sys.exit(75)', 'sys.exit(1)', 'os.kill(os.getpid(), 9)'])
def test_one_that_dies_ends_all_and_all_start_again(place, end):
  code, output, errors = run(place, 2, f'if start == 1:\n  time.sleep(60 * (1 - index)); {end}')
  assert code == 0
  assert len(starts(place)) == len(starts(place, 1)) == 2
  assert output.splitlines() == ['process 0 start 1', 'got SIGTERM', 'process 0 start 2']
  assert 'process 1: ' in errors and 'all start again in 1 s' in errors


def test_starts_without_a_checkpoint_are_bounded(place):
  code, _, errors = run(place, 1, 'start > 3 or saved(start); sys.exit(1)', '--tries=2')
  assert code == 1 and len(starts(place)) == 5
  assert 'no new checkpoint in 2 starts, giving up: see run/logs' in errors


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_all_and_end_the_job(place, number):
  job = start(place, 2, 'time.sleep(60)')
  logs = [place / f'run/logs/process-{index}.log' for index in range(2)]
  wait_until(lambda: all(log.exists() and 'start 1' in log.read_text() for log in logs))
  job.send_signal(number)
  job.communicate(timeout=120)
  assert job.returncode == 75
  assert all(log.read_text().endswith(f'got {number.name}\n') for log in logs)


@pytest.mark.parametrize('end', ['signal.SIG_DFL', 'lambda *_: sys.exit(130)'])
def test_stop_before_there_is_anything_to_save_can_be_resumed(place, end):
  job = start(place, 1, f'signal.signal(2, {end}); print("ready", flush=True); time.sleep(60)')
  assert job.stdout.readline() and job.stdout.readline() == 'ready\n'
  job.send_signal(signal.SIGINT)
  job.communicate(timeout=120)
  assert job.returncode == 75


@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes in /proc')
def test_processes_die_with_a_killed_supervisor(place):
  job = start(place, 2, 'signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)')
  files = [place / f'run/starts-{index}' for index in range(2)]
  wait_until(lambda: all(file.exists() and file.read_text() for file in files))
  job.kill()
  job.communicate()
  wait_until(lambda: not any(alive(p) for p in (starts(place)[0], starts(place, 1)[0])))


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ([], 'give -n PROCESSES'),
    (['-n', '2'], 'after -- the flags of main'),
    (['-n', '0', '--', '--config=x'], '--n=0: 0 is not a positive integer'),
    (['-n', 'two', '--', '--config=x'], '--n=two: invalid literal'),
    (['-n', '1', '--', '--config=x'], '--workdir=FOLDER is missing'),
    (['-n', '1', '--', '--workdir=gs://a/b'], '--workdir=gs://a/b: not a folder'),
    (['-n', '1', '--config=x', '--', '--workdir=x'], '--config=x: flags of main stand after --'),
    (['-n', '1', '--trys=2', '--', '--workdir=x'], "Unknown command line flag 'trys'"),
  ],
)
def test_wrong_words_get_one_line(tmp_path, words, said):
  done = subprocess.run([*LOCAL, *words], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())


def train(workdir):
  words = ['-n', '2', '--devices_per_process=1', '--', *FLAGS, f'--workdir={workdir}']
  output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  return subprocess.Popen([*LOCAL, *words], cwd=ROOT, env=ENVIRONMENT, **output)


@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes in /proc')
def test_run_whose_process_was_killed_ends_with_the_same_bits(tmp_path):
  with train(tmp_path / 'undisturbed') as undisturbed:
    output = undisturbed.stdout.read()
  assert undisturbed.returncode == 0 and 'process 1/2, 1 of 2 devices, cpu' in output, output

  said = ''
  with train(tmp_path / 'run') as job:
    for line in job.stdout:
      if 'step 5/' in line and 'start again' not in said:
        children = Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
      said += line
  assert job.returncode == 0, said
  assert 'process 1: killed by SIGKILL; all start again' in said and 'resuming from step' in said
  assert_same_ends(tmp_path / 'undisturbed', tmp_path / 'run')
