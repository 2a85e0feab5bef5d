"""A stand-in for gcloud, for `test_tpu_vm`: refuses flags that gcloud has not, and plays a cloud.

The flags are those of the reference at cloud.google.com/sdk/gcloud/reference. $CLOUD is a folder:
`state` holds the queued resource's state, `next` the states it will have, one a look; `calls` gets
a line of JSON a call; each VM's home folder is `vm-<number>`, buckets are in `buckets`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ['CLOUD'])
WHERE = {'--zone', '--project'}
SSH = WHERE | {'--worker', '--tunnel-through-iap', '--internal-ip', '--batch-size'}
FLAGS = {
  'config get-value': set(),
  'compute tpus queued-resources describe': WHERE | {'--format'},
  'compute tpus queued-resources delete': WHERE | {'--force', '--quiet', '--async'},
  'compute tpus queued-resources create': WHERE
  | {'--node-id', '--accelerator-type', '--runtime-version', '--data-disk', '--async', '--spot'}
  | {'--reserved', '--valid-until-duration', '--network', '--subnetwork', '--internal-ips'},
  'compute tpus tpu-vm ssh': SSH | {'--command'},
  'compute tpus tpu-vm scp': SSH,
  'storage ls': set(),
  'storage rsync': {'--recursive', '--delete-unmatched-destination-objects', '--exclude'},
}


def main(words):
  name = next((name for name in FLAGS if words[: len(name.split())] == name.split()), None)
  if name is None:
    sys.exit(f'ERROR: (gcloud) Invalid choice: {words}')
  words = words[len(name.split()) :]
  flags = dict(word.partition('=')[::2] for word in words if word.startswith('--'))
  places = [word for word in words if not word.startswith('--')]
  if unknown := flags.keys() - FLAGS[name]:
    sys.exit(f'ERROR: (gcloud.{name}) unrecognized arguments: {unknown}')
  if WHERE <= FLAGS[name] and not WHERE <= flags.keys():
    sys.exit(f'ERROR: (gcloud.{name}) --zone and --project must be specified')
  with open(CLOUD / 'calls', 'a') as calls:
    calls.write(json.dumps([name, places, flags]) + '\n')
  play = globals()[name.split()[-1].replace('-', '_')]
  sys.exit(play(places, flags) or 0)


def get_value(places, flags):
  print('my-project')


def describe(places, flags):
  state = CLOUD / 'state'
  if not state.exists():
    sys.exit('ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: was not found')
  print(state.read_text())
  coming = (CLOUD / 'next').read_text().split() if (CLOUD / 'next').exists() else []
  if coming:
    state.write_text(coming[0])
    (CLOUD / 'next').write_text(' '.join(coming[1:]))


def create(places, flags):
  if (CLOUD / 'state').exists():
    sys.exit('ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS')
  (CLOUD / 'state').write_text('WAITING_FOR_RESOURCES')
  (CLOUD / 'next').write_text('PROVISIONING PROVISIONING ACTIVE')


def delete(places, flags):
  (CLOUD / 'state').unlink()


def workers(flags):
  if (CLOUD / 'state').read_text() != 'ACTIVE':
    sys.exit('ERROR: (gcloud.compute.tpus.tpu-vm) the node does not exist')
  homes = sorted(CLOUD.glob('vm-*'))
  return homes if flags['--worker'] == 'all' else [homes[int(flags['--worker'])]]


def ssh(places, flags):
  codes = []
  for home in workers(flags):
    environment = os.environ | {'HOME': str(home), 'TPU_WORKER_ID': home.name.removeprefix('vm-')}
    command = ['bash', '-c', flags['--command']]
    codes.append(subprocess.run(command, cwd=home, env=environment).returncode)
  return max(codes)


def scp(places, flags):
  source, target = places
  name, _, path = target.partition(':')
  assert name and not path, target
  for home in workers(flags):
    shutil.copy(source, home)


def local(place):
  return CLOUD / 'buckets' / place[5:] if place.startswith('gs://') else pathlib.Path(place)


def ls(places, flags):
  return 0 if local(places[0]).exists() else 'ERROR: (gcloud.storage.ls) matched no objects'


def rsync(places, flags):
  """Copies files, as a bucket has no folders, and leaves out what is hidden if so told."""
  source, target = map(local, places)
  if not source.is_dir() or (not target.is_dir() and not places[1].startswith('gs://')):
    sys.exit(f'ERROR: (gcloud.storage.rsync) Did not find existing container at: {places}')
  hidden = '--exclude' in flags
  if hidden:
    assert flags['--exclude'] == r'(.*/)?\..*'
  if '--delete-unmatched-destination-objects' in flags:
    shutil.rmtree(target, ignore_errors=True)
  for file in source.rglob('*'):
    parts = file.relative_to(source).parts
    if file.is_file() and not (hidden and any(part.startswith('.') for part in parts)):
      copy = target.joinpath(*parts)
      copy.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, copy)


if __name__ == '__main__':
  main(sys.argv[1:])
