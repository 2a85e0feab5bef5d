"""Sources: every example with its label, the same validation part always, and clear refusals."""

import importlib.util
import json
import pathlib
import pickle
import re
import shutil
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.tiny_data import TFDS_SCRIPT, data_config, refused, write_folder, write_images

from alexnet_jax.data import generated, image_folder, images, preparation, tfds_prepare, tfds_source
from alexnet_jax.data.preparation import data_directory, open_source
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console


def test_data_directory(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/elsewhere')
  assert data_directory(data_config(source='tfds')) == pathlib.Path('/elsewhere')
  monkeypatch.delenv('TFDS_DATA_DIR')
  default = pathlib.Path('~/tensorflow_datasets').expanduser()
  assert data_directory(data_config(source='tfds')) == default
  assert data_directory(data_config(dir='~/x')) == pathlib.Path('~/x').expanduser()
  with pytest.raises(ValueError, match="data.source='webcam'"):
    data_directory(data_config(source='webcam'))
  refused('needs data.dir', source='folder')
  refused('data.dir=gs://b/x: not a folder', source='folder', dir='gs://b/x')
  monkeypatch.setenv('TFDS_DATA_DIR', 'gs://b/tfds')
  refused(r'\$TFDS_DATA_DIR=gs://b/tfds: not a folder', source='tfds', name='mnist')


# Digits and synthetic images.


def test_digits():
  source = open_source(data_config(source='digits', image_size=32, validation_fraction=0.2))
  assert (len(source.train), len(source.eval)) == (1438, 359)
  numbers = [int(example.name.split()[1]) for example in [*source.train, *source.eval]]
  assert sorted(numbers) == list(range(1797))
  from sklearn.datasets import load_digits

  raw = load_digits()
  for example in open_source(data_config(source='digits', image_size=8)).train:
    number = int(example.name.split()[1])
    assert example.label == raw.target[number]
    expected = raw.images[number] * 255 / 16
    assert np.abs(example.data - expected).max() <= 0.5 and example.data.dtype == np.uint8
  assert source.train[0].data.shape == (32, 32)
  assert np.bincount([source.eval[i].label for i in range(359)], minlength=10).min() > 20


def test_synthetic_is_a_function_of_the_index():
  config = data_config(source='synthetic', synthetic_examples=50, num_classes=7, image_size=24)
  first, second = open_source(config), open_source(config)
  assert (len(first.train), len(first.eval), len(first.classes)) == (50, 7, 7)
  for split in ('train', 'eval'):
    one, other = getattr(first, split)[3], getattr(second, split)[3]
    assert np.array_equal(one.data, other.data) and one.label == other.label == 3
    assert one.data.shape == (24, 24, 3) and one.data.dtype == np.uint8
  assert not np.array_equal(first.train[0].data, first.train[7].data)
  with pytest.raises(IndexError):
    first.train[50]


def test_synthetic_can_be_learnt():
  source = generated.synthetic(10, 400, 16)
  seen = [source.train[i] for i in range(400)]
  means = np.stack([np.mean([e.data.ravel() for e in seen if e.label == k], 0) for k in range(10)])
  held_out = [source.eval[i] for i in range(len(source.eval))]
  guesses = [np.square(means - e.data.ravel()).sum(axis=1).argmin() for e in held_out]
  assert np.mean([g == e.label for g, e in zip(guesses, held_out, strict=True)]) > 0.9


# Image folders.


@pytest.mark.parametrize('name', ['validation', 'val', 'Valid', 'TEST'])
def test_folder_with_validation(tmp_path, name):
  root = write_folder(tmp_path / 'insects', train=5, held_out=2)
  (root / 'validation').rename(root / name)
  (root / 'train').rename(root / 'Train')
  source = open_source(data_config(dir=root))
  assert source.name == 'insects' and source.classes == ('ant', 'bee', 'cat')
  assert (len(source.train), len(source.eval)) == (15, 6)
  example = source.eval[3]
  assert example.label == 1 and example.name == str(root / name / 'bee/001.png')
  assert example.data == pathlib.Path(example.name).read_bytes()


def test_folder_without_validation_holds_out_of_every_class(tmp_path):
  for seed, (name, count) in enumerate({'b': 8, 'a': 20, 'c': 2}.items()):
    write_images(tmp_path / name, count, seed=seed)
  source = image_folder.open_folder(tmp_path, 0.25)
  assert source.classes == ('a', 'b', 'c')
  assert np.bincount(source.train.labels).tolist() == [15, 6, 1]
  assert np.bincount(source.eval.labels).tolist() == [5, 2, 1]
  assert not set(source.train.keys) & set(source.eval.keys)
  shutil.rmtree(tmp_path / 'a')  # the other classes keep their parts
  assert image_folder.open_folder(tmp_path, 0.25).eval.keys == source.eval.keys[5:]


def write_flat(root, **counts):
  """Kaggle's layout: `<class>.<number>.png` for each class."""
  root.mkdir(parents=True, exist_ok=True)
  for seed, (name, count) in enumerate(counts.items()):
    write_images(root / 'images', count, seed=seed)
    for number, file in enumerate(sorted((root / 'images').iterdir())):
      file.rename(root / f'{name}.{number}.png')
    (root / 'images').rmdir()


def test_flat_folder_as_kaggle_packs_it(tmp_path):
  write_flat(tmp_path / 'train', cat=20, dog=10)
  write_images(tmp_path / 'test1', 5)
  source = open_source(data_config(dir=tmp_path, validation_fraction=0.2))
  assert source.classes == ('cat', 'dog')
  for split, sizes in ((source.train, [16, 8]), (source.eval, [4, 2])):
    assert np.bincount(split.labels).tolist() == sizes
    named = [pathlib.Path(file).name.split('.')[0] for file in split.keys]
    assert named == [source.classes[label] for label in split.labels]
  assert not set(source.train.keys) & set(source.eval.keys)
  assert source.found == (
    '24 training and 6 validation images (0.2 of each class) of 2 classes, the smallest dog with'
    ' 10, the largest cat with 20; ignored: test1/ with 5 images of unknown class'
  )
  # The folder of images itself has the same split, whatever the files hold.
  for file in (tmp_path / 'train').iterdir():
    file.write_bytes(b'other')
  inner = open_source(data_config(dir=tmp_path / 'train', validation_fraction=0.2))
  assert [f'train/{file}' for file in inner.eval.keys] == list(source.eval.keys)
  for file in (tmp_path / 'train').iterdir():  # another sign, the same data
    file.rename(file.with_name('_0'.join(file.name.split('.', 1))))
  other = open_source(data_config(dir=tmp_path, validation_fraction=0.2))
  assert (other.classes, len(other.train)) == (source.classes, 24)
  for file in (tmp_path / 'train').iterdir():
    file.rename(file.with_name(file.name.replace('_0', '.')))
  # Images to validate on, called alike, are used; test1/ is not, even so.
  (tmp_path / 'test1').rename(tmp_path / 'test')
  write_flat(tmp_path / 'test1', cat=1)
  assert open_source(data_config(dir=tmp_path, validation_fraction=0.2)).eval == source.eval
  write_flat(tmp_path / 'validation', dog=1)
  used = open_source(data_config(dir=tmp_path))
  assert (len(used.train), used.eval.keys) == (30, ('validation/dog.0.png',))


def test_flat_folders_that_are_unclear(tmp_path):
  write_flat(tmp_path / 'train', cat=3, dog=3)
  write_images(tmp_path / 'more', 2)
  refused('has train/, with images called .* and more/ beside it: if', dir=tmp_path)
  write_images(tmp_path / 'train', 1)
  assert open_source(data_config(dir=tmp_path)).classes == ('more', 'train')
  shutil.rmtree(tmp_path / 'more')
  refused('6 images called .* and 1 whose names say no class, such as 000.png', dir=tmp_path)
  write_flat(tmp_path / 'one', cat=3)
  refused('one has no class folders: .* or call them cat.0.jpg', dir=tmp_path / 'one')


def test_every_image_is_found_and_the_rest_is_told(tmp_path):
  root = tmp_path / 'data'
  suffixes = ['.JPEG', '.jpg', '.PNG', '.bmp', '.webp', '.tif', '.gif', '.ppm', '.jp2']
  for suffix in suffixes:
    write_images(root / 'train/ant' / f'nested{suffix}', 1, suffix=suffix)
  write_images(tmp_path / 'elsewhere/deep', 2)
  (root / 'train/bee').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere/deep/again').symlink_to(root / 'train')  # must not go round for ever
  for name in ('ant', 'bee'):
    write_images(root / 'val' / name, 1)
    write_images(root / 'test' / name, 3)
  write_images(root / 'drafts', 2)
  (root / 'train/ant/notes.txt').write_text('no image')
  (root / 'train/ant/.hidden.jpg').write_text('no image')
  (root / 'train/.git').mkdir()
  source = open_source(data_config(dir=root))
  assert [source.train.labels.count(label) for label in (0, 1)] == [9, 2]
  for index in range(len(source.train)):
    assert images.read_image(source.train[index].data, 8, 'crop').shape == (8, 8, 3)
  assert source.found == (
    '11 training and 2 validation images (val/) of 2 classes, the smallest bee with 2, the largest '
    'ant with 9; ignored: drafts/ with 2 images, test/ with 6 images, 1 .txt, 2 hidden, 1 link to '
    'a folder around it'
  )


@pytest.mark.parametrize(
  ('tree', 'expected'),
  [
    ('train bus car', 'bus car train'),
    ('train/red bus/blue car', 'train/, which holds folders .* and bus/ beside it'),
    ('train/ant train/bee', 'ant bee'),
    ('train/ant train/bee holdout/ant', 'train/, which .* holdout/ beside it: call .* validation/'),
    ('one/ant one/bee two/ant two/bee', 'one/ and two/ both hold ant/ and bee/, as parts'),
    ('ant/images bee/images', 'ant bee'),  # one folder in common, as parts never have
    ('train/ant train/bee val/ant valid/ant', 'both val/ and valid/'),
    ('ant bee test', 'has test/ but no train/'),
    ('train/ant train/bee ../loose', 'ant bee'),
  ],
)
def test_parts_or_classes(tmp_path, tree, expected):
  for seed, name in enumerate(tree.split()):
    write_images(tmp_path / 'data' / name, 4, seed=seed)
  try:
    classes = open_source(data_config(dir=tmp_path / 'data')).classes
  except UserError as error:
    assert re.search(expected, str(error)) and '\n' not in str(error)
  else:
    assert ' '.join(classes) == expected


def test_broken_links(tmp_path):
  root = write_folder(tmp_path, train=3, held_out=2)
  (root / 'train/ant/linked.png').symlink_to('/gone.png')
  source = open_source(data_config(dir=root))
  assert len(source.train) == 10
  with pytest.raises(FileNotFoundError):  # which preparing counts as an unreadable image
    source.train[3]
  (root / 'train/ant').rename(root / 'moved')
  with pytest.raises(UserError, match='is its disk still there'):
    source.train[0]
  (root / 'train/ant').symlink_to('/gone')
  refused('train/ant is a broken link', dir=root)


def test_fingerprint_follows_names_and_sizes(tmp_path):
  write_folder(tmp_path, train=3, held_out=2)
  before = open_source(data_config(dir=tmp_path)).fingerprint
  shutil.copytree(tmp_path, tmp_path.with_name('copy'))
  assert open_source(data_config(dir=tmp_path.with_name('copy'))).fingerprint == before
  with open(tmp_path / 'train/ant/000.png', 'ab') as file:
    file.write(b'more')
  assert open_source(data_config(dir=tmp_path)).fingerprint != before


def test_folder_errors(tmp_path):
  refused('does not exist', dir=tmp_path / 'absent')
  refused('is empty', dir=tmp_path)
  (tmp_path / 'notes.txt').write_text('no image')
  refused('no class folders', dir=tmp_path)
  write_folder(tmp_path / 'a', train=2, held_out=1)
  (tmp_path / 'a/train/dog').mkdir()
  refused('a/train/dog has no image', dir=tmp_path / 'a')
  (tmp_path / 'a/train/dog').rename(tmp_path / 'a/validation/dog')
  refused('a/validation/dog has no image', dir=tmp_path / 'a')
  (tmp_path / 'a/validation/dog').rmdir()
  write_images(tmp_path / 'a/validation/eel', 1)
  refused("lacks, the first is 'eel'", dir=tmp_path / 'a')
  (tmp_path / 'a/train').rename(tmp_path / 'a/pictures')
  refused('but no train/', dir=tmp_path / 'a')
  write_images(tmp_path / 'b/one', 1)
  refused("class 'one' has 1 image", dir=tmp_path / 'b')


# TensorFlow Datasets.


def needs_tensorflow():
  # Not importorskip: TensorFlow belongs in child processes, in tests as in the program.
  if importlib.util.find_spec('tensorflow') is None:
    pytest.skip('needs TensorFlow to prepare data sets')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A TFDS directory with the prepared data set `tiny`."""
  needs_tensorflow()
  directory = tmp_path_factory.mktemp('tfds')
  command = [sys.executable, '-c', TFDS_SCRIPT, 'tiny', str(directory)]
  subprocess.run(command, check=True, capture_output=True)
  return directory


@pytest.mark.slow
def test_tfds(tiny, tmp_path):
  shutil.copytree(tiny, tmp_path / 'tfds')
  config = {'source': 'tfds', 'name': 'tiny', 'dir': tmp_path / 'tfds'}
  source = open_source(data_config(**config))
  assert source.classes == ('ant', 'bee', 'cat')
  assert (len(source.train), len(source.eval)) == (30, 9)
  rng = np.random.default_rng(0)
  written = {rng.integers(0, 256, (20, 24, 3), dtype=np.uint8).tobytes(): i % 3 for i in range(30)}
  for split in (source.train, pickle.loads(pickle.dumps(source.train))):
    read = [split[i] for i in range(30)]
    assert all(e.name == f'train[{i}]' for i, e in enumerate(read))
    assert {images._decode(e.data).tobytes(): e.label for e in read} == written
  parts = open_source(data_config(**config, train_split='train[:80%]', eval_split='train[80%:]'))
  assert (len(parts.train), len(parts.eval)) == (24, 6)
  refused("has no split 'validation': it has train, test", **config, eval_split='validation')
  shutil.rmtree(tmp_path / 'tfds')
  with pytest.raises(UserError, match=r'^train\[:80%\]\[3\] of .*No such file.*disk still'):
    parts.train[3]


@pytest.mark.slow
def test_reading_tfds_never_imports_tensorflow(tiny):
  script = f"""
import pathlib, sys
from alexnet_jax.data.tfds_source import open_tfds
from alexnet_jax.data import preparation
source = open_tfds('tiny', pathlib.Path({str(tiny)!r}), 'train', 'test')
assert len(source.train[0].data) > 100
heavy = [name for name in ('tensorflow', 'jax', 'torch') if name in sys.modules]
assert not heavy, heavy
"""
  subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'fileFormat': 'tfrecord'}, 'tfrecord format.*tfds convert_format'),
    ({'name': 'cifar10', 'version': '3.0.2'}, '30 train examples instead of 50,000'),
  ],
)
def test_tfds_data_sets_of_another_kind(tiny, tmp_path, changes, match):
  said = {'name': 'tiny', 'version': '1.0.0'} | changes
  folder = tmp_path / said['name'] / said['version']
  shutil.copytree(tiny / 'tiny' / '1.0.0', folder)
  info = json.loads((folder / 'dataset_info.json').read_text())
  (folder / 'dataset_info.json').write_text(json.dumps(info | changes))
  refused(match, source='tfds', name=said['name'], dir=tmp_path)


def test_unknown_tfds_name(tmp_path):
  refused('neither a TFDS data set nor one in', source='tfds', name='cifra10', dir=tmp_path)
  refused('cannot be loaded at version 9.9.9', source='tfds', name='cifar10:9.9.9', dir=tmp_path)


def test_sizes_of_data_sets_that_are_not_there(tmp_path, monkeypatch):
  def config(name, **changes):
    return data_config(source='tfds', name=name, dir=tmp_path / 'tfds', **changes)

  assert preparation.sizes(config('cifar100'), None) == (100, 50_000, 10_000)
  parts = {'train_split': 'train[:80%]', 'eval_split': 'train[80%:]'}
  assert preparation.sizes(config('cats_vs_dogs', **parts), None) == (2, 18_610, 4_652)
  assert 'to be prepared' in preparation.state(config('cifar100'))
  imagenet = config('imagenet2012', eval_split='validation')
  assert preparation.sizes(imagenet, None) == (1000, 1_281_167, 50_000)
  assert 'ILSVRC2012_img_train.tar' in preparation.state(imagenet)
  for name in ('imagenette', 'imagenette/full-size-v2'):
    assert preparation.sizes(config(name, eval_split='validation'), None) == (10, 9_469, 3_925)
  assert not (tmp_path / 'tfds').exists()

  # Of unknown size: nothing is downloaded for a dry run; else it is, whatever its name.
  asked = []
  monkeypatch.setattr(tfds_prepare, 'check_ingredients', lambda name, directory: None)
  monkeypatch.setattr(
    tfds_prepare, 'ensure_prepared', lambda name, directory, say: asked.append((name, directory))
  )
  for progress, downloads in ((None, []), (Console(quiet=True), [('kmnist', tmp_path / 'tfds')])):
    with pytest.raises(UserError, match='kmnist/.* is not at '):
      preparation.sizes(config('kmnist'), progress)
    assert asked == downloads


def test_absent_data_set(tmp_path):
  absent = {'source': 'tfds', 'name': 'cifar10', 'dir': tmp_path}
  refused('is not at .*cifar10/3.0.2: run python -m alexnet_jax.prepare', **absent)


def prepare_refused(match, name, directory):
  with pytest.raises(UserError, match=match) as caught:
    tfds_prepare.ensure_prepared(name, directory, print)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_imagenet_archives_missing_or_cut_short(tmp_path):
  manual = tmp_path / 'downloads/manual'
  message = prepare_refused('ILSVRC2012_img_train.tar', 'imagenet2012', tmp_path)
  for text in (
    str(tmp_path / 'imagenet2012/5.1.0'),
    str(manual / 'ILSVRC2012_img_val.tar'),
    "pip install 'alexnet_jax[prepare]'",
    'data.source=folder',
    'data.source=synthetic',
  ):
    assert text in message
  manual.mkdir(parents=True)
  (manual / 'ILSVRC2012_img_train.tar').write_bytes(b'short')
  message = prepare_refused(
    'it [^,]*ILSVRC2012_img_val.tar must be there', 'imagenet2012', tmp_path
  )
  (manual / 'ILSVRC2012_img_val.tar').write_bytes(b'short')
  prepare_refused('train.tar has 5 bytes instead of 147,', 'imagenet2012', tmp_path)


def test_preparing_needs_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  prepare_refused(
    r'needs tensorflow and importlib_resources.*alexnet_jax\[prepare\]', 'cifar10', tmp_path
  )
  config = data_config(source='tfds', name='cifar10', dir=tmp_path / 'misspelt')
  with pytest.raises(UserError, match='needs tensorflow'):
    preparation.prepare_store(config, progress=Console(quiet=True))
  assert not (tmp_path / 'misspelt').exists()


def test_no_network_ends_at_once(tmp_path, monkeypatch):
  needs_tensorflow()
  tried = []

  def connect(address, timeout):
    tried.append((address, timeout))
    raise OSError('unreachable')

  monkeypatch.setattr(socket, 'create_connection', connect)
  for variable in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  prepare_refused('toronto.edu cannot be reached', 'cifar10', tmp_path)
  assert tried == [(('www.cs.toronto.edu', 443), 3.0)]
  monkeypatch.setenv('https_proxy', 'http://proxy.example:3128')
  prepare_refused('proxy.example cannot be reached', 'cifar10', tmp_path)


def test_a_failed_preparation_is_one_line(tmp_path, monkeypatch):
  needs_tensorflow()
  monkeypatch.setattr(tfds_prepare, 'check_network', lambda builder: None)
  (tmp_path / 'cifar10/incomplete.ABC_3.0.2').mkdir(parents=True)
  (tmp_path / 'downloads').write_text('a file where a folder must be')
  lines = []
  with pytest.raises(UserError, match='could not prepare cifar10 in .*: [A-Za-z]+Error: '):
    tfds_prepare.ensure_prepared('cifar10', tmp_path, lines.append)
  assert 'incomplete.ABC_3.0.2' in lines[0] and 'preparing the TFDS data set' in lines[1]


@pytest.mark.slow
def test_data_sets_of_something_else_are_refused(tiny, monkeypatch):
  builder = tfds_source.find_builder('tiny', tiny)
  info = types.SimpleNamespace(
    full_name='tiny/1.0.0',
    file_format=builder.info.file_format,
    alternative_file_formats=[],
    features={'text': 0},
  )
  fake = types.SimpleNamespace(info=info, data_path=builder.data_path)
  monkeypatch.setattr(tfds_source.tfds, 'builder', lambda name, data_dir: fake)
  refused('not one of labeled images', source='tfds', name='tiny', dir=tiny)
