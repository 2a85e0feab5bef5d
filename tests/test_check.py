"""`prepare --check`: what is there, what is missing, the next command; and nothing is changed."""

import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
from helpers.tiny_data import ARCHIVE_BYTES, data_config, write_folder, write_imagenet_archives

from alexnet_jax.data import check, preparation, tfds_source, writer
from alexnet_jax.data.progress import Silent

TRAIN, VALIDATION = ARCHIVE_BYTES


def imagenet(directory, **changes):
  return data_config(
    source='tfds',
    name='imagenet2012',
    dir=directory,
    eval_split='validation',
    image_size=256,
    **changes,
  )


def everything(root):
  """Every file and folder, with the time of its last change."""
  return {file: file.stat().st_mtime_ns for file in (root, *root.rglob('*'))}


@pytest.fixture
def look(tmp_path):
  """`check.look`, which must not change anything."""

  def function(config):
    before = everything(tmp_path)
    report = check.look(config)
    assert everything(tmp_path) == before
    assert '\n' not in report.problem
    return report

  return function


def text(report):
  return '\n'.join(f'{what} {found}' for what, found in report.lines)


@pytest.fixture
def roomy(monkeypatch):
  """A disk that has room for ImageNet."""
  usage = shutil.disk_usage('/')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10**12))


@pytest.fixture
def archives(tmp_path):
  write_imagenet_archives(tmp_path / 'downloads/manual', {'n01440764': {}}, [])
  return tmp_path / 'downloads/manual'


@pytest.fixture
def with_tensorflow(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: real('os') if name in ('tensorflow', 'importlib_resources') else real(name),
  )


# ImageNet from its archives.


def test_nothing_there(tmp_path, look):
  report = look(imagenet(tmp_path / 'tfds'))
  for tried in (
    f'{tmp_path}/tfds (data.dir): absent',
    f'{tmp_path}/tfds/imagenet2012/5.1.0: absent',
    f'{TRAIN}: absent, published size 147,897,477,120',
    f'{VALIDATION}: absent, published size 6,744,924,160',
    'network not needed',
    f'{tmp_path}/tfds-stores/imagenet2012-256-crop: absent',
  ):
    assert tried in text(report), tried
  assert f'{TRAIN}, ' in report.problem and VALIDATION in report.problem
  manual = tmp_path / 'tfds/downloads/manual'
  assert report.remedy == f'mkdir -p {manual} && mv {TRAIN} {VALIDATION} {manual}'
  assert not report.complete


def test_both_archives(tmp_path, archives, look, roomy, with_tensorflow):
  report = look(imagenet(tmp_path))
  assert (report.problem, report.complete) == ('', False)
  assert f'{TRAIN}: 147,897,477,120 bytes' in text(report) and 'TensorFlow there' in text(report)
  assert '154.6 GB for the TFDS data set and 261.7 GB for the store' in text(report)


def test_train_archive_missing(tmp_path, archives, look):
  (archives / TRAIN).unlink()
  report = look(imagenet(tmp_path))
  assert f'{archives / TRAIN} must be there' in report.problem
  assert report.remedy == f'mkdir -p {archives} && mv {TRAIN} {archives}'


def test_train_archive_cut(tmp_path, archives, look):
  os.truncate(archives / TRAIN, 1_000_000_000)
  report = look(imagenet(tmp_path))
  assert f'{TRAIN} has 1,000,000,000 bytes instead of 147,897,477,120' in report.problem
  assert report.remedy == ''


def test_no_tensorflow(tmp_path, archives, look, roomy, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  report = look(imagenet(tmp_path))
  assert 'TensorFlow absent' in text(report)
  assert 'needs tensorflow and importlib_resources' in report.problem
  assert report.remedy == "pip install 'alexnet_jax[prepare]'"


def test_disk_too_small(tmp_path, archives, look, with_tensorflow, monkeypatch):
  usage = shutil.disk_usage('/')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=300 * 10**9))
  report = look(imagenet(tmp_path))
  assert f'{tmp_path} has 300.0 GB free, 416.4 GB are needed' in report.problem
  assert look(imagenet(tmp_path, encoding='jpeg')).problem == ''


# Data sets that TFDS has prepared.


def write_prepared(directory, name='imagenet2012/5.1.0', file_format='array_record', **counts):
  """What TFDS leaves behind, without images."""
  folder = directory / name
  folder.mkdir(parents=True)
  splits = [
    {
      'name': split,
      'numBytes': '10',
      'shardLengths': [str(count)],
      'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    }
    for split, count in counts.items()
  ]
  features = tfds_source.find_builder('imagenet2012', directory).info.features
  features.save_config(str(folder))
  (folder / 'dataset_info.json').write_text(
    json.dumps(
      {
        'name': 'imagenet2012',
        'version': name.split('/')[1],
        'fileFormat': file_format,
        'splits': splits,
      }
    )
  )
  return folder


@pytest.mark.parametrize(('train', 'match'), [(640_583, '640,583 train'), (None, 'has 0 train')])
def test_prepared_from_a_train_archive_cut_or_missing(tmp_path, look, train, match):
  counts = {'train': train} if train else {}
  folder = write_prepared(tmp_path, validation=50_000, **counts)
  report = look(imagenet(tmp_path))
  assert f'{train or 0:,} train (expected 1,281,167), 50,000 validation' in text(report)
  assert match in report.problem and 'instead of 1,281,167' in report.problem
  assert report.remedy == f'rm -r {folder}'


def test_prepared_as_tfrecord(tmp_path, look):
  folder = write_prepared(tmp_path, file_format='tfrecord', train=1_281_167, validation=50_000)
  report = look(imagenet(tmp_path))
  assert f'{folder}: tfrecord, 1,281,167 train, 50,000 validation' in text(report)
  assert 'tfrecord format, which cannot be read by index' in report.problem
  assert report.remedy == (
    f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record'
  )


def test_prepared_by_an_old_tfds(tmp_path, look):
  folder = write_prepared(tmp_path, train=1_281_167, validation=50_000)
  (folder / 'features.json').unlink()
  report = look(imagenet(tmp_path))
  assert 'is not a data set that this version of TFDS reads' in report.problem
  assert report.remedy == f'rm -r {folder}'


def test_left_over_and_another_version(tmp_path, look):
  write_prepared(tmp_path, 'imagenet2012/4.0.0', train=1, validation=1)
  left = tmp_path / 'imagenet2012/incomplete.ABC_5.1.0'
  left.mkdir()
  report = look(imagenet(tmp_path))
  assert f'left over {left}: delete it' in text(report)
  assert 'imagenet2012/4.0.0: --config.data.name=imagenet2012:4.0.0' in text(report)
  assert f'only {left.name} of an interrupted preparation' in report.problem


def test_no_network(tmp_path, look, with_tensorflow, monkeypatch):
  def connect(address, timeout):
    raise OSError('unreachable')

  monkeypatch.setattr(socket, 'create_connection', connect)
  for variable in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  report = look(data_config(source='tfds', name='cifar10', dir=tmp_path, image_size=32))
  assert 'network absent' in text(report) and 'toronto.edu cannot be reached' in report.problem


def test_unknown_name(tmp_path, look):
  assert (
    'neither a TFDS data set'
    in look(data_config(source='tfds', name='imagenet2021', dir=tmp_path)).problem
  )


# Folders and stores.


def test_folder_and_its_store(tmp_path, look, monkeypatch):
  monkeypatch.setattr(writer, 'ROWS_PER_PART', 8)
  root = write_folder(tmp_path / 'insects')
  config = data_config(dir=root)
  report = look(config)
  assert (report.problem, report.complete) == ('', False)
  assert '60 training and 21 held-out images, 3 classes from ant' in text(report)
  assert 'insects-16-crop: absent' in text(report)

  source = preparation.sources.open_source(config)
  path = preparation.store_path(config)
  path.parent.mkdir()
  job = writer.Job(source, path.with_name(path.name + '.tmp'), 16, 'crop', 8)
  job.begin()
  for part in job.waiting()[:5]:
    job.write_part(part, lambda n: None)
  assert 'interrupted, 5 of 11 parts done' in text(look(config))
  other = look(data_config(dir=root, store=path, image_size=8))
  assert 'is of another preparation and would be dropped' in text(other)
  other = look(data_config(dir=tmp_path / 'absent', store=path))
  assert f'an interrupted preparation left {job.folder}' in text(other) and other.problem

  preparation.prepare_store(config, workers=1, progress=Silent())
  report = look(config)
  assert (report.problem, report.complete) == ('', True)
  assert 'complete, 60 training and 21 held-out images, raw' in text(report)
  other = look(data_config(dir=root, store=path, image_size=8))
  assert 'has image_size 16, this configuration wants 8' in other.problem
  (root / 'train/ant/000.png').unlink()
  assert 'has fingerprint' in look(config).problem
  shutil.rmtree(root)  # a complete store is enough
  assert look(config).complete and look(config).problem == ''
  assert look(data_config(store=path)).complete


def test_folder_errors(tmp_path, look):
  assert 'needs data.dir' in look(data_config()).problem
  assert 'is not a folder' in look(data_config(dir=tmp_path / 'absent')).problem


def test_nothing_to_prepare(look):
  assert look(data_config(source='digits')).complete


# The command.


def run(*words, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'alexnet_jax.prepare', *words],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
    cwd=pathlib.Path(__file__).parents[1],
  )


def test_the_command_says_what_is_next(tmp_path):
  finished = run('--config=configs/imagenet.py', '--check', TFDS_DATA_DIR=str(tmp_path))
  assert finished.returncode == 2
  assert finished.stderr.startswith('error: ') and finished.stderr.count('\n') == 1
  assert '($TFDS_DATA_DIR)' in finished.stdout
  assert finished.stdout.splitlines()[-1].endswith(
    ', then python -m alexnet_jax.prepare --config=configs/imagenet.py --check'
  )

  root = write_folder(tmp_path / 'insects')
  words = ('--config', f'configs/folder.py:{root}', '--config.seed', '3')
  finished = run(*words, '--check', '--workers', '2')
  assert finished.returncode == 0, finished.stderr
  command = f'--config configs/folder.py:{root} --config.seed 3'
  assert finished.stdout.splitlines()[-1].split(None, 1)[1] == (
    f'python -m alexnet_jax.prepare {command}'
  )
  assert 'images per core-second' in run(*words).stderr
  finished = run(*words, '--check')
  assert finished.returncode == 0 and finished.stdout.splitlines()[-1].split(None, 1)[1] == (
    f'python -m alexnet_jax.main {command}'
  )
