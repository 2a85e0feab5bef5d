"""Jobs of two processes: the same numbers as one, agreement on stopping, no silent hangs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers.commands import wait_until
from helpers.same_ends import assert_same_ends, final

from alexnet_jax.errors import UserError
from alexnet_jax.run.metrics import read_metrics
from alexnet_jax.runtime import distributed

COMMAND = [
  sys.executable,
  '-m',
  'alexnet_jax.main',
  '--config=configs/digits.py',
  '--config.epochs=2',
  '--config.data.train_examples=300',
  '--config.checkpoint.every_epochs=0.5',
  '--config.optimizer.schedule.kind=constant',
  '--config.log.every_steps=1',
  '--config.seed=2',
]


def start(workdir, processes, devices, *flags, each='--distributed=auto', command=COMMAND):
  """Starts a job; its processes' outputs go to files beside the workdir.

  `each` is a flag in which {} stands for the number of the process.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  workdir.parent.mkdir(parents=True, exist_ok=True)
  inherited = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  flag = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = inherited | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flag}
  if processes > 1:
    environment |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(processes)}
  job = []
  for index in range(processes):
    if processes > 1:
      environment['JAX_PROCESS_ID'] = str(index)
    words = [*command, f'--workdir={workdir}', *flags, each.format(index)]
    with open(f'{workdir}-{index}.log', 'a') as log:
      job.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
  return job


def finish(job, workdir):
  codes = [process.wait(600) for process in job]
  return codes, [Path(f'{workdir}-{index}.log').read_text() for index in range(len(job))]


def run(workdir, processes, devices, *flags):
  codes, logs = finish(start(workdir, processes, devices, *flags), workdir)
  assert codes == [0] * processes, logs
  return logs


def state_of(workdir):
  """Parameters and velocity of the newest checkpoint by name."""
  found = final(workdir)
  return {name: found[name] for name in found if name.startswith(('/params', '/opt_state'))}


def assert_close(found, expected):
  """Relative to the norm of each array: other orders of summing change the last bits.

  They can also turn a unit that is next to zero on or off, one of a hundred thousand. Another
  example, view or mask would change a step's gradients by a tenth or more.
  """
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert np.linalg.norm(found[name] - value) <= 2e-3 * np.linalg.norm(value), name


def series(workdir, name='train/loss'):
  return np.array([record[name] for record in read_metrics(workdir) if name in record])


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
  """An undisturbed run on two devices of one process."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  run(workdir, 1, 2)
  return workdir


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
  """The same run on one device of each of two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  return workdir, run(workdir, 2, 1)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(one_process, two_processes):
  workdir, logs = two_processes
  assert 'process 1/2, 1 of 2 devices, cpu' in logs[0].splitlines()[0]
  assert 'process 2/2, 1 of 2 devices, cpu' in logs[1].splitlines()[0]
  assert 'epoch' in logs[0] and 'epoch' not in logs[1]  # the first speaks for both
  ours, theirs = series(one_process), series(workdir)
  assert len(ours) == len(theirs) == 10 and np.ptp(ours) > 0.02
  # Other examples, crops or masks would show in the first digits.
  np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-5)
  np.testing.assert_allclose(theirs[:4], ours[:4], rtol=1e-3)
  assert final(workdir)['step'] == final(one_process)['step'] == 10
  results = json.loads((workdir / 'results.json').read_text())
  assert results['evaluated_images'] == 359 and results['processes'] == 2
  assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == len(
    (one_process / 'metrics.jsonl').read_text().splitlines()
  )


@pytest.mark.slow
def test_two_processes_evaluate(one_process, tmp_path):
  """They find of the same state what one process had found at the end of its run."""
  workdir = shutil.copytree(one_process, tmp_path / 'run')
  command = [sys.executable, '-m', 'alexnet_jax.evaluate']
  codes, logs = finish(start(workdir, 2, 1, command=command), workdir)
  assert codes == [0, 0], logs
  assert 'over 359 images' in logs[0] and 'over 359 images' not in logs[1]
  report = json.loads((workdir / 'evaluation-last-1.json').read_text())
  (found,) = report['results'].values()
  results = json.loads((workdir / 'results.json').read_text())
  assert found['top1_error'] == pytest.approx(results['eval/top1_error'], abs=1 / 359 + 1e-9)
  assert found['loss'] == pytest.approx(results['eval/loss'], rel=1e-5)


@pytest.mark.slow
def test_one_process_is_told_to_stop_and_both_do(two_processes, tmp_path):
  """The signal reaches the second only; the end is that of an undisturbed run, bit for bit."""
  workdir = tmp_path / 'run'
  job = start(workdir, 2, 1)
  metrics = workdir / 'metrics.jsonl'
  wait_until(lambda: metrics.exists() and metrics.read_text(), seconds=600)
  job[1].send_signal(signal.SIGTERM)
  codes, logs = finish(job, workdir)
  if codes != [0, 0]:  # else it was done before the signal came
    assert codes == [75, 75], logs
    assert 'stopped by another process' in logs[0] and 'stopped by SIGTERM' in logs[1]
  run(workdir, 2, 1)
  assert_same_ends(two_processes[0], workdir)


@pytest.fixture(scope='module')
def first_steps(tmp_path_factory):
  """Runs of one and of two steps, the latter begun as the former, on two devices of one process."""
  one = tmp_path_factory.mktemp('steps') / 'one'
  run(one, 1, 2, '--config.epochs=0.2')
  two = shutil.copytree(one, one.with_name('two'))
  run(two, 1, 2, '--config.epochs=0.4')
  assert final(one)['step'] == 1 and final(two)['step'] == 2
  return one, two


@pytest.mark.slow
@pytest.mark.parametrize(
  'processes, devices, spread', [(1, 1, False), (1, 8, False), (2, 2, False), (2, 2, True)]
)
def test_the_next_step_is_the_same_on_another_topology(
  first_steps, tmp_path, processes, devices, spread
):
  """From the same state: loss, gradients, velocity and parameters, dense layers whole or spread."""
  one, two = first_steps
  workdir = shutil.copytree(one, tmp_path / 'run')
  flags = ['--config.epochs=0.4', *['--config.model.shard_dense=True'] * spread]
  logs = run(workdir, processes, devices, *flags)
  if spread:  # of fc5 4 do not divide the 10 classes
    assert 'dense layers sharded over 4 devices: fc4\n' in logs[0]
  assert 'changed since the run began: epochs: 0.2 -> 0.4' in logs[0]
  np.testing.assert_allclose(series(workdir), series(two), rtol=1e-5)
  gradients = [series(folder, 'train/gradient_norm') for folder in (workdir, two)]
  np.testing.assert_allclose(*gradients, rtol=2e-3)
  assert final(workdir)['step'] == 2
  assert_close(state_of(workdir), state_of(two))
  with pytest.raises(AssertionError):
    assert_close(state_of(workdir), state_of(one))
  if spread:
    (log,) = run(workdir, 1, 1, '--config.epochs=0.6')
    assert 'model.shard_dense: True -> False' in log and final(workdir)['step'] == 3


@pytest.mark.slow
def test_processes_need_not_share_a_disk(two_processes, tmp_path):
  workdir = tmp_path / 'run'
  codes, logs = finish(start(workdir, 2, 1, each=f'--workdir={workdir}-{{}}'), workdir)
  assert codes == [0, 0], logs
  assert not (tmp_path / 'run-1').exists()
  assert_same_ends(two_processes[0], tmp_path / 'run-0')


@pytest.mark.slow
def test_a_dead_peer_ends_the_job(tmp_path):
  workdir = tmp_path / 'run'
  job = start(workdir, 2, 1, '--config.epochs=500')
  metrics = workdir / 'metrics.jsonl'
  wait_until(lambda: metrics.exists() and metrics.read_text(), seconds=600)
  job[1].kill()
  codes, logs = finish(job, workdir)
  assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 3), logs


@pytest.mark.slow
def test_different_commands_are_noticed(tmp_path):
  workdir = tmp_path / 'run'
  codes, logs = finish(start(workdir, 2, 1, each='--config.seed={}'), workdir)
  assert codes[1] == 2 and codes[0] != 0
  assert 'process 1 has another config than process 0' in logs[1]


@pytest.mark.parametrize(
  'environ, found',
  [
    ({}, ''),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, ''),  # sbatch script or salloc, without srun
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '1'}, ''),  # interactive
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '4'}, 'Slurm'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, ''),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ''),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, ''),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU pod'),
  ],
)
def test_who_has_peers(environ, found):
  with mock.patch.dict(os.environ, environ, clear=True):
    assert distributed.cluster() == found


def test_half_a_job_is_one_line():
  with pytest.raises(UserError, match='JAX_NUM_PROCESSES set without JAX_COORDINATOR_ADDRESS'):
    with mock.patch.dict(os.environ, {'JAX_NUM_PROCESSES': '2'}, clear=True):
      distributed.cluster()
  with pytest.raises(UserError, match='no cluster is recognized'):
    distributed.join('on')
