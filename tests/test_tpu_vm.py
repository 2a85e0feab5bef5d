"""launch/tpu_vm.sh: the calls of gcloud that it prints. It has never run on a TPU."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'launch/tpu_vm.sh'


def script(*words, **variables):
  kept = {'PATH': os.environ['PATH'], 'DRY_RUN': '1', 'ZONE': 'us-east5-b'}
  return subprocess.run([SCRIPT, *words], env=kept | variables, capture_output=True, text=True)


def calls(*words, **variables):
  """Places and flags of the calls in order."""
  done = script(*words, **variables)
  assert done.returncode == 0 and not done.stderr, done.stderr
  found = []
  for line in done.stdout.splitlines():
    parts = shlex.split(line)
    flags = dict(part.partition('=')[::2] for part in parts if part.startswith('--'))
    assert flags.pop('--zone') == 'us-east5-b'
    found.append((' '.join(part for part in parts if not part.startswith('--')), flags))
  return found


@pytest.mark.parametrize(('kind', 'mode'), [('v6e-8', 'read-write'), ('v6e-16', 'read-only')])
def test_create_asks_for_a_slice_whose_machines_can_share_the_disk(kind, mode):
  ((call, flags),) = calls('create', '--spot', TYPE=kind, DISK='projects/p/zones/z/disks/d')
  assert call == 'gcloud compute tpus queued-resources create alexnet'
  assert flags == {
    '--node-id': 'alexnet',
    '--accelerator-type': kind,
    '--runtime-version': 'v2-alpha-tpuv6e',
    '--async': '',
    '--data-disk': f'source=projects/p/zones/z/disks/d,mode={mode}',
    '--spot': '',
  }


def test_setup_copies_this_tree_to_all_machines_and_installs_it():
  copy, unpack, install = calls('setup', TYPE='v6e-16', SSH_FLAGS='--tunnel-through-iap --batch=2')
  assert copy[0].startswith('gcloud compute tpus tpu-vm scp /')
  assert copy[0].endswith(' alexnet:alexnet_jax.tar.gz')
  assert 'tar -xzf alexnet_jax.tar.gz -C alexnet_jax' in unpack[1].pop('--command')
  assert install[1].pop('--command').endswith(' POD=1 alexnet_jax/launch/tpu_vm.sh vm_setup')
  for _, flags in (copy, unpack, install):
    assert flags == {'--worker': 'all', '--tunnel-through-iap': '', '--batch': '2'}


def test_words_of_run_arrive_as_they_were_given():
  words = ['--config=configs/digits.py', '--workdir=runs/it', "--config.data.dir=a b'c$HOME"]
  ((call, flags),) = calls('run', *words, BUCKET='gs://mine/runs', TPU='other')
  assert call == 'gcloud compute tpus tpu-vm ssh other'
  found = shlex.split(flags['--command'])
  assert 'BUCKET=gs://mine/runs' in found and found[-len(words) :] == words


def test_the_other_verbs():
  assert calls('logs')[0][1] == {'--worker': '0', '--command': 'tail -n 50 -F alexnet_jax/job.log'}
  assert calls('stop')[0][1]['--command'].endswith('alexnet_jax/launch/tpu_vm.sh vm_stop')
  assert calls('state')[0][0] == 'gcloud compute tpus queued-resources describe alexnet'
  assert calls('delete', '--quiet')[0][1] == {'--force': '', '--quiet': ''}


@pytest.mark.parametrize(
  ('words', 'variables', 'said'),
  [
    ((), {}, "verb ''"),
    (('strat',), {}, "verb 'strat'"),
    (('create',), {'ZONE': ''}, 'ZONE is not set'),
    (('create',), {'TYPE': 'v6e'}, 'TYPE=v6e'),
    (('run', '--config=configs/digits.py'), {}, 'run needs --workdir'),
  ],
)
def test_wrong_use_gets_one_line(words, variables, said):
  done = script(*words, **variables)
  assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1
  assert not done.stdout
