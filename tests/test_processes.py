"""Jobs of two processes: the same numbers as one, agreement on stopping, no silent hangs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import distributed
from alexnet_jax.errors import UserError
from alexnet_jax.results.metrics import read_metrics
from alexnet_jax.train.checkpoint import Checkpoints

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


def environment(devices, **more):
  kept = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  flags = f'--xla_force_host_platform_device_count={devices}'
  return kept | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | more


def start(workdir, processes, devices, *flags, each='--distributed=auto', command=COMMAND):
  """Starts a job; its processes' outputs go to files beside the workdir.

  `each` is a flag in which {} stands for the number of the process.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  workdir.parent.mkdir(parents=True, exist_ok=True)
  job = []
  for index in range(processes):
    job_environment = environment(devices)
    if processes > 1:
      job_environment |= {
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(processes),
        'JAX_PROCESS_ID': str(index),
      }
    with open(f'{workdir}-{index}.log', 'a') as log:
      job.append(
        subprocess.Popen(
          [*command, f'--workdir={workdir}', *flags, each.format(index)],
          env=job_environment,
          stdout=log,
          stderr=log,
        )
      )
  return job


def finish(job, workdir):
  codes = [process.wait(300) for process in job]
  return codes, [Path(f'{workdir}-{index}.log').read_text() for index in range(len(job))]


def run(workdir, processes, devices, *flags):
  codes, logs = finish(start(workdir, processes, devices, *flags), workdir)
  assert codes == [0] * processes, logs
  return logs


def final(workdir):
  """Step and leaves of the newest checkpoint."""
  import orbax.checkpoint as ocp

  checkpoints = Checkpoints(workdir / 'checkpoints', primary=False)
  newest = checkpoints.steps()[-1]
  checkpoints.close()
  with ocp.StandardCheckpointer() as reader:
    state = reader.restore(workdir / 'checkpoints' / 'last' / str(newest) / 'state')
  return newest, state['params']


def leaves(tree, prefix=''):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, f'{prefix}{name}/')
    else:
      yield prefix + name, np.asarray(value)


def assert_close(tree, other):
  """Other topologies add up in another order; now and then that flips a tie in a max pool."""
  for (name, value), (_, expected) in zip(leaves(tree), leaves(other), strict=True):
    np.testing.assert_allclose(value, expected, atol=2e-3, err_msg=name)


def assert_losses_close(workdir, other):
  """Other examples, crops or masks would show in the first digits."""
  found, expected = (
    np.array([r['train/loss'] for r in read_metrics(folder) if 'train/loss' in r])
    for folder in (workdir, other)
  )
  assert len(found) == 10 and np.ptp(expected) > 0.02
  np.testing.assert_allclose(found, expected, atol=2e-3)
  assert np.median(np.abs(found - expected)) < 1e-5


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


def test_two_processes_learn_what_one_does(one_process, two_processes):
  workdir, logs = two_processes
  assert 'process 1/2, 1 of 2 devices, cpu' in logs[0].splitlines()[0]
  assert 'process 2/2, 1 of 2 devices, cpu' in logs[1].splitlines()[0]
  assert 'epoch' in logs[0] and 'epoch' not in logs[1]  # the first speaks for both
  step, theirs = final(workdir)
  same_step, ours = final(one_process)
  assert step == same_step == 10
  assert_close(theirs, ours)
  assert_losses_close(workdir, one_process)
  one, two = (
    json.loads((folder / 'results.json').read_text()) for folder in (one_process, workdir)
  )
  assert two['evaluated_images'] == 359 and two['processes'] == 2
  assert two['eval/top1_error'] == pytest.approx(one['eval/top1_error'], abs=1 / 359 + 1e-9)
  predictions = [
    np.load(folder / 'predictions-last-1.npz', allow_pickle=False)
    for folder in (one_process, workdir)
  ]
  np.testing.assert_array_equal(predictions[0]['label'], predictions[1]['label'])
  np.testing.assert_allclose(
    predictions[0]['probabilities'], predictions[1]['probabilities'], atol=2e-3
  )
  assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == len(
    (one_process / 'metrics.jsonl').read_text().splitlines()
  )


def test_two_processes_evaluate(two_processes):
  """The same command on two processes says what the run itself had found."""
  workdir, _ = two_processes
  command = [sys.executable, '-m', 'alexnet_jax.evaluate']
  codes, logs = finish(start(workdir, 2, 1, command=command), workdir)
  assert codes == [0, 0], logs
  assert 'over 359 images' in logs[0] and 'over 359 images' not in logs[1]
  report = json.loads((workdir / 'evaluation-last-1.json').read_text())
  (found,) = report['results'].values()
  results = json.loads((workdir / 'results.json').read_text())
  assert found['top1_error'] == pytest.approx(results['eval/top1_error'])
  assert found['loss'] == pytest.approx(results['eval/loss'], rel=1e-5)


def test_one_process_is_told_to_stop_and_both_do(two_processes, tmp_path):
  """The signal reaches the second only; the end is that of an undisturbed run, bit for bit."""
  workdir = tmp_path / 'run'
  job = start(workdir, 2, 1)
  deadline = time.monotonic() + 120
  while not (workdir / 'metrics.jsonl').exists() or not (workdir / 'metrics.jsonl').read_text():
    assert time.monotonic() < deadline and all(process.poll() is None for process in job)
    time.sleep(0.05)
  job[1].send_signal(signal.SIGTERM)
  codes, logs = finish(job, workdir)
  if codes != [0, 0]:  # else it was done before the signal came
    assert codes == [75, 75], logs
    assert 'stopped by another process' in logs[0] and 'stopped by SIGTERM' in logs[1]
  run(workdir, 2, 1)
  step, resumed = final(workdir)
  undisturbed_step, undisturbed = final(two_processes[0])
  assert step == undisturbed_step
  for (name, value), (_, expected) in zip(leaves(resumed), leaves(undisturbed), strict=True):
    assert value.tobytes() == expected.tobytes(), name


def test_a_run_moves_between_topologies(one_process, tmp_path):
  """Eight devices of one process, then two of each of two processes, then a single one."""
  workdir = tmp_path / 'run'
  run(workdir, 1, 8, '--config.epochs=0.5')
  run(workdir, 2, 2, '--config.epochs=1')
  logs = run(workdir, 1, 1)
  assert 'changed since the run began: epochs: 1.0 -> 2.0' in logs[0]
  step, moved = final(workdir)
  expected_step, stayed = final(one_process)
  assert step == expected_step
  assert_close(moved, stayed)
  assert_losses_close(workdir, one_process)
  lines = (workdir / 'changes.jsonl').read_text().splitlines()
  changes = [json.loads(line)['changes'] for line in lines]
  assert changes == [{'epochs': [0.5, 1.0]}, {'epochs': [1.0, 2.0]}]


def test_layers_spread_over_processes_learn_what_whole_ones_do(one_process, tmp_path):
  """Two devices of each of two processes, stopped half way; then a single one has them whole."""
  workdir = tmp_path / 'run'
  logs = run(workdir, 2, 2, '--config.epochs=1', '--config.model.shard_dense=True')
  assert 'layers spread over 4 devices: fc4\n' in logs[0]  # of fc5 4 do not divide the 10 classes
  logs = run(workdir, 1, 1)
  assert 'model.shard_dense: True -> False' in logs[0]
  step, moved = final(workdir)
  expected_step, stayed = final(one_process)
  assert step == expected_step
  assert_close(moved, stayed)
  assert_losses_close(workdir, one_process)


def test_processes_need_not_share_a_disk(two_processes, tmp_path):
  codes, logs = finish(
    start(tmp_path / 'run', 2, 1, each=f'--workdir={tmp_path}/run-{{}}'), tmp_path / 'run'
  )
  assert codes == [0, 0], logs
  assert not (tmp_path / 'run-1').exists()
  step, params = final(tmp_path / 'run-0')
  expected_step, expected = final(two_processes[0])
  assert step == expected_step
  for (name, leaf), (same, value) in zip(leaves(params), leaves(expected), strict=True):
    assert name == same and np.array_equal(leaf, value), name


def test_a_dead_peer_ends_the_job(tmp_path):
  workdir = tmp_path / 'run'
  job = start(workdir, 2, 1, '--config.epochs=500')
  deadline = time.monotonic() + 120
  while not (workdir / 'metrics.jsonl').exists() or not (workdir / 'metrics.jsonl').read_text():
    assert time.monotonic() < deadline and all(process.poll() is None for process in job)
    time.sleep(0.05)
  job[1].kill()
  began = time.monotonic()
  codes, logs = finish(job, workdir)
  assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 3), logs
  assert time.monotonic() - began < 100


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
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '1'}, ''),  # interactive
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '4'}, 'Slurm'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, ''),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ''),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, ''),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU pod'),
  ],
)
def test_who_has_peers(environ, found):
  assert distributed.cluster(environ) == found


def test_half_a_job_is_one_line():
  with pytest.raises(UserError, match='JAX_NUM_PROCESSES set without JAX_COORDINATOR_ADDRESS'):
    distributed.cluster({'JAX_NUM_PROCESSES': '2'})
  with pytest.raises(UserError, match='no cluster is recognized'):
    distributed.join('on')
