"""launch/tpu_vm.sh against a stand-in for gcloud: it has never met a TPU, see launch/README.md."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Stands for alexnet_jax.main on a VM: ten steps, a checkpoint after each, on worker 0.
TRAINER = """
import os, pathlib, signal, sys, time
flags = dict(word[2:].split('=', 1) for word in sys.argv[1:])
last = pathlib.Path(flags['workdir']) / 'checkpoints/last'
steps = [int(path.name) for path in last.glob('*')]
print('begins after step', max(steps, default=0), 'of', flags['config'], flush=True)
if data := os.environ.get('TFDS_DATA_DIR'):
  print('data:', *sorted(path.name for path in pathlib.Path(data).iterdir()), flush=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
for step in range(max(steps, default=0) + 1, int(flags['until']) + 1):
  time.sleep(0.1)
  if os.environ.get('TPU_WORKER_ID') == '0':
    (last / str(step)).mkdir(parents=True)
    (last / str(step) / 'state').write_text(str(step))
    (last / '.saving-99').mkdir(exist_ok=True)
    (last / '.saving-99/state').write_text('unfinished')
    (last.parents[1] / 'config.json').write_text('{}')
  if stopped:
    sys.exit(75)
"""


class Cloud:
  """A stand-in cloud, and the script on a computer outside it."""

  def __init__(self, path, workers):
    self.path = path
    self.workers = workers
    tools = path / 'tools'
    tools.mkdir()
    gcloud = ROOT / 'tests/stand_in_gcloud.py'
    uv = f'[ $1 = pip ] || (mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python)'
    sudo = 'case $1 in mount) echo "$@" >> $CLOUD/mounts ;; *) "$@" ;; esac'
    for name, text in {
      'gcloud': f'exec {sys.executable} {gcloud} "$@"',
      'uv': f'echo "$PWD: $@" >> $CLOUD/installed; {uv}',
      'sudo': sudo,
    }.items():
      (tools / name).write_text(f'#!/bin/bash\n{text}\n')
      (tools / name).chmod(0o755)
    self.environment = os.environ | {
      'PATH': f'{tools}:{os.environ["PATH"]}',
      'CLOUD': str(path),
      'MOUNT': str(path / 'mounted'),
      'ZONE': 'us-east5-b',
      'POLL': '0',
    }
    self.make_machines()

  def make_machines(self):
    for worker in range(self.workers):
      shutil.rmtree(self.path / f'vm-{worker}', ignore_errors=True)
      (self.path / f'vm-{worker}').mkdir()

  def __call__(self, *words, **variables):
    return subprocess.run(
      [str(ROOT / 'launch/tpu_vm.sh'), *words],
      env=self.environment | variables,
      cwd=self.path,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def up(self, **variables):
    for verb in ('create', 'setup'):
      done = self(verb, **variables)
      assert done.returncode == 0, done.stderr
    for worker in range(self.workers):
      (self.path / f'vm-{worker}/alexnet_jax/alexnet_jax/main.py').write_text(TRAINER)

  def calls(self, end):
    """Places and flags of the calls whose name ends so."""
    lines = (self.path / 'calls').read_text().splitlines()
    return [call[1:] for call in map(json.loads, lines) if call[0].endswith(end)]

  def log(self, worker=0):
    return (self.path / f'vm-{worker}/alexnet_jax/job.log').read_text()

  def wait(self, text, worker=0):
    end = time.monotonic() + 60
    log = self.path / f'vm-{worker}/alexnet_jax/job.log'
    while not log.exists() or text not in log.read_text():
      assert time.monotonic() < end, log.exists() and log.read_text()
      time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path, 1)


@pytest.fixture
def pod(tmp_path):
  return Cloud(tmp_path, 2)


RUN = ('run', '--config=configs/digits.py', '--workdir=runs/it')


def test_create_asks_for_a_spot_slice_and_waits_for_it(cloud):
  done = cloud('create', '--spot', '--network=mine', TYPE='v5litepod-8')
  assert done.returncode == 0, done.stderr
  said = [line.split(';')[0] for line in done.stdout.splitlines()]
  states = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  assert said == [f'alexnet is {state}' for state in states]
  ((places, flags),) = cloud.calls('create')
  assert places == ['alexnet']
  assert flags == {
    '--zone': 'us-east5-b',
    '--project': 'my-project',
    '--node-id': 'alexnet',
    '--accelerator-type': 'v5litepod-8',
    '--runtime-version': 'v2-alpha-tpuv5-lite',
    '--async': '',
    '--spot': '',
    '--network': 'mine',
  }
  assert cloud('create', '--spot').returncode == 0
  assert len(cloud.calls('create')) == 1  # it is there


@pytest.mark.parametrize(
  ('kind', 'runtime', 'mode'),
  [
    ('v6e-8', 'v2-alpha-tpuv6e', 'read-write'),
    ('v6e-16', 'v2-alpha-tpuv6e', 'read-only'),
    ('v5p-16', 'v2-alpha-tpuv5', 'read-only'),
    ('v4-8', 'tpu-ubuntu2204-base', 'read-write'),
  ],
)
def test_disk_is_read_only_where_several_machines_share_it(cloud, kind, runtime, mode):
  assert cloud('create', TYPE=kind, DISK='data', PROJECT='other').returncode == 0
  _, flags = cloud.calls('create')[0]
  assert flags['--runtime-version'] == runtime
  assert flags['--data-disk'] == f'source=projects/other/zones/us-east5-b/disks/data,mode={mode}'


def test_preempted_slice_is_made_anew(cloud):
  for state in ('SUSPENDED', 'FAILED'):
    (cloud.path / 'state').write_text(state)
    done = cloud('create', '--spot')
    assert done.returncode == 0 and 'anew' in done.stdout, done.stderr
  (_, deleted), _ = cloud.calls('delete')
  assert deleted.keys() >= {'--force', '--quiet'} and len(cloud.calls('create')) == 2


def test_request_that_fails_in_the_queue_ends_the_waiting(cloud):
  (cloud.path / 'state').write_text('PROVISIONING')
  (cloud.path / 'next').write_text('FAILED')
  done = cloud('create')
  assert done.returncode == 2 and 'error: alexnet is FAILED' in done.stderr


def test_setup_installs_this_tree_on_every_machine_with_its_data(pod):
  (pod.path / 'buckets/mine/data/cifar10').mkdir(parents=True)
  (pod.path / 'buckets/mine/data/cifar10/features.json').write_text('{}')
  pod.up(TYPE='v6e-16', DATA='gs://mine/data', SSH_FLAGS='--tunnel-through-iap')
  for worker in range(2):
    tree = pod.path / f'vm-{worker}/alexnet_jax'
    for name in ('alexnet_jax/config.py', 'configs/digits.py', 'setup.cfg', 'launch/local.py'):
      assert (tree / name).read_bytes() == (ROOT / name).read_bytes()
    assert f'{tree}: pip install --quiet --python .venv/bin/python -e .[tpu]' in (
      (pod.path / 'installed').read_text()
    )
  assert (pod.path / 'mounted/cifar10/features.json').exists()
  for _, flags in pod.calls('ssh') + pod.calls('scp'):
    assert flags['--worker'] == 'all' and '--tunnel-through-iap' in flags


@pytest.mark.parametrize(
  ('kind', 'options'), [('v6e-8', 'noatime'), ('v4-32', 'ro,noload,noatime')]
)
def test_setup_mounts_the_disk(cloud, kind, options):
  cloud.up(TYPE=kind, DISK='data')
  mounted = (cloud.path / 'mounts').read_text()
  assert mounted == f'mount -o {options} /dev/disk/by-label/alexnet {cloud.path / "mounted"}\n'


def test_run_goes_on_after_stop_and_after_preemption(cloud):
  bucket = cloud.path / 'buckets/mine/it/checkpoints/last'
  variables = {'BUCKET': 'gs://mine', 'SYNC': '0.3'}
  cloud.up(**variables)
  done = cloud(*RUN, '--until=1000', **variables)
  assert done.returncode == 0 and 'started' in done.stdout, done.stderr
  cloud.wait('begins after step 0 of configs/digits.py')
  again = cloud(*RUN, '--until=1000', **variables)
  assert again.returncode == 2 and 'stop it first' in again.stderr
  done = cloud('stop')
  assert done.returncode == 0 and 'exit code 75' in done.stdout, done.stderr
  saved = max(int(path.name) for path in bucket.iterdir())
  assert saved >= 1 and not list(bucket.glob('.*'))

  cloud.make_machines()
  (cloud.path / 'state').write_text('SUSPENDED')
  cloud.up(**variables)
  assert cloud(*RUN, f'--until={saved + 3}', **variables).returncode == 0
  cloud.wait('exit code 0')
  assert f'begins after step {saved} ' in cloud.log()
  assert (bucket / str(saved + 3) / 'state').read_text() == str(saved + 3)
  assert 'no job runs here' in cloud('stop').stdout


def test_copies_are_made_while_the_job_runs(cloud):
  variables = {'BUCKET': 'gs://mine', 'SYNC': '0.3'}
  cloud.up(**variables)
  cloud(*RUN, '--until=1000', **variables)
  end = time.monotonic() + 60
  while not (cloud.path / 'buckets/mine/it/checkpoints/last/3').exists():
    assert time.monotonic() < end
    time.sleep(0.1)
  assert 'exit code' not in cloud.log()
  cloud('stop')


def test_only_the_first_machine_of_a_pod_copies(pod):
  variables = {'TYPE': 'v6e-16', 'BUCKET': 'gs://mine'}
  pod.up(**variables)
  assert pod(*RUN, '--until=3', **variables).returncode == 0
  for worker in range(2):
    pod.wait('exit code 0', worker)
  assert [places[1] for places, _ in pod.calls('rsync')] == ['gs://mine/it']


def test_words_arrive_as_they_were_given(cloud):
  cloud.up()
  assert cloud(*RUN, '--until=0', "--config=a b'c$HOME").returncode == 0
  cloud.wait("of a b'c$HOME\n")


def test_logs_follow_the_first_machine(cloud):
  (cloud.path / 'state').write_text('ACTIVE')
  shutil.rmtree(cloud.path / 'vm-0')
  (cloud.path / 'vm-0/alexnet_jax').mkdir(parents=True)
  (cloud.path / 'tools/tail').write_text('#!/bin/sh\necho tail "$@"\n')
  (cloud.path / 'tools/tail').chmod(0o755)
  assert cloud('logs').stdout == 'tail -n 50 -F alexnet_jax/job.log\n'


def test_delete_asks_unless_told_not_to(cloud):
  for words, quiet in (((), False), (('--quiet',), True)):
    (cloud.path / 'state').write_text('ACTIVE')
    assert cloud('delete', *words).returncode == 0
    assert ('--quiet' in cloud.calls('delete')[-1][1]) == quiet


@pytest.mark.parametrize(
  ('words', 'variables', 'said'),
  [
    ((), {}, "verb ''"),
    (('strat',), {}, "verb 'strat'"),
    (('create',), {'ZONE': ''}, 'ZONE is not set'),
    (('create',), {'TYPE': 'v6e'}, 'TYPE=v6e'),
    (('create',), {'TYPE': 'tpu7x-8'}, 'set RUNTIME too'),
    (('setup',), {'DATA': '/data'}, 'DATA=/data: must be a place like gs://'),
    (('run',), {}, 'run needs --workdir'),
    (('run', '--workdir=gs://mine/it'), {}, '--workdir=gs://mine/it: must be on a disk'),
    ((*RUN, '--config.data.store=gs://a/b'), {}, 'data.store=gs://a/b: must be on a disk'),
  ],
)
def test_wrong_use_gets_one_line_and_reaches_no_cloud(cloud, words, variables, said):
  done = cloud(*words, **variables)
  assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1
  changing = ('create', 'delete', 'ssh', 'scp', 'rsync')
  assert not (cloud.path / 'calls').exists() or not any(map(cloud.calls, changing))


def test_failure_of_gcloud_is_shown(cloud):
  done = cloud('create', '--spto')
  assert done.returncode != 0 and '--spto' in done.stderr
