"""Parquet files: the store is that of a folder of the same images, and clear refusals."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from helpers.tiny_data import data_config, encoded, refused, write_folder

from alexnet_jax.data.preparation import open_source, prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

pyarrow = pytest.importorskip('pyarrow')
parquet = pytest.importorskip('pyarrow.parquet')

SIZE = 16
IMAGE = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])


def image(number, mode='RGB'):
  """An image file of one color, which is its number."""
  return encoded(np.full((20, 24, 3), number, np.uint8), 'PNG', mode)


def write(path, images, labels, *, names=None, columns=('image', 'label'), kind=IMAGE, **options):
  """Writes images, {bytes, path} each or as `kind` wants them, as the `datasets` package does."""
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = [pyarrow.array(images, kind), pyarrow.array(labels)]
  table = pyarrow.table(dict(zip(columns, arrays, strict=True)))
  if names is not None:
    features = {columns[0]: {'_type': 'Image'}, columns[1]: {'names': names, '_type': 'ClassLabel'}}
    info = json.dumps({'info': {'features': features}})
    table = table.replace_schema_metadata({'huggingface': info})
  parquet.write_table(table, path, **options)
  return path


def colored(count, wnid='', start=0):
  """`count` images, and their numbers as names."""
  return [{'bytes': image(n), 'path': f'{wnid}{n}.png'} for n in range(start, start + count)]


def prepared(root, store, **changes):
  config = data_config(dir=root, store=store, image_size=SIZE, **changes)
  return prepare_store(config, progress=Console(quiet=True), workers=1)


@pytest.mark.parametrize('options', [{'row_group_size': 7}, {'compression': 'none'}])
def test_the_store_is_that_of_the_folder(tmp_path, options):
  """Images of random sizes, in two files a split: the same rows to the byte."""
  folder = write_folder(tmp_path / 'folder', train=20, held_out=7)
  source = open_source(data_config(dir=folder))
  for name, split in (('train', source.train), ('validation', source.eval)):
    examples = [split[i] for i in range(len(split))]
    images = [{'bytes': example.data, 'path': None} for example in examples]
    labels = [example.label for example in examples]
    for number, part in enumerate((slice(0, 11), slice(11, None))):
      path = tmp_path / f'packed/data/{name}-{number:05}-of-00002.parquet'
      write(path, images[part], labels[part], names=['ant', 'bee', 'cat'], **options)
  expected = prepared(folder, tmp_path / 'one')
  found = prepared(tmp_path / 'packed', tmp_path / 'other')
  assert found.classes == expected.classes
  for name in ('train', 'eval'):
    for file in ('images', 'labels', 'source_index'):
      path = f'{name}/{file}.npy'
      assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'other' / path).read_bytes()
  assert np.array_equal(found.mean_image, expected.mean_image)
  assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith('.')) == [
    'folder',
    'one',
    'other',
    'packed',
  ]
  # By index, and in another process, it is the same.
  packed = pickle.loads(pickle.dumps(open_source(data_config(dir=tmp_path / 'packed')).train))
  for index in (0, 10, 11, 59):
    assert packed[index].data == source.train[index].data
    assert packed[index].label == source.train[index].label
  assert packed[11].name == f'{tmp_path}/packed/data/train-00001-of-00002.parquet, image 0'


def test_imagenet_of_hugging_face(tmp_path):
  """WNIDs in the names of files are the classes; words, two of them alike, are from the file."""
  names = ['crane', 'tench', 'crane']
  wnids = ['n02012849', 'n01440764', 'n03126707']  # the labels' order is not theirs
  train = [
    {'bytes': image(10 * label), 'path': f'{wnids[label]}_{label}_{wnids[label]}.JPEG'}
    for label in (2, 0, 1, 0)
  ]
  validation = [{'bytes': image(10), 'path': 'ILSVRC2012_val_00000001_n01440764.JPEG'}]
  write(tmp_path / 'data/train-00000-of-00001.parquet', train, [2, 0, 1, 0], names=names)
  path = tmp_path / 'data/validation-00000-of-00001.parquet'
  write(path, validation, [1], names=names)
  write(tmp_path / 'data/test-00000-of-00001.parquet', validation, [-1], names=names)
  source = open_source(data_config(dir=tmp_path))
  assert source.classes == ('n01440764', 'n02012849', 'n03126707')
  assert source.class_names == ('tench', 'crane', 'crane')
  assert [source.train[i].label for i in range(4)] == [0, 1, 1, 2]
  assert [source.train[i].data for i in range(4)] == [image(n) for n in (10, 0, 0, 20)]
  assert source.eval[0].label == 0 and source.eval[0].data == image(10)
  assert source.found == (
    f'parquet files as of Hugging Face, at {tmp_path}: 4 training and 1 validation images'
    ' (validation) of 3 classes, numbered anew in the order of their WNIDs, the smallest n01440764'
    ' with 1, the largest n02012849 with 2; ignored: 1 file(s) test-00000-of-00001.parquet'
  )
  write(path, validation, [2], names=names)
  refused('val_00000001_n01440764.JPEG has label 2, which is n03126707', dir=tmp_path)


@pytest.mark.parametrize(
  ('labels', 'names', 'classes', 'numbers'),
  [
    (['b', 'a', 'b', 'a'], None, ('a', 'b'), [1, 0, 1, 0]),
    (['10', '9', '9', '10'], None, ('9', '10'), [1, 0, 0, 1]),
    ([7, 3, 3, 7], None, ('3', '7'), [1, 0, 0, 1]),
    ([0, 2, 2, 0], ['z', 'y', 'a'], ('z', 'y', 'a'), [0, 2, 2, 0]),
    (['z', 'a', 'a', 'z'], ['z', 'y', 'a'], ('z', 'y', 'a'), [0, 2, 2, 0]),
    ([0, 2, 2, 0], ['crane', 'y', 'crane'], ('crane (0)', 'y', 'crane (2)'), [0, 2, 2, 0]),
  ],
)
def test_labels_and_names(tmp_path, labels, names, classes, numbers):
  """Without validation files, a part of each class is held out."""
  path = write(tmp_path / 'some.parquet', colored(4), labels, names=names)
  source = open_source(data_config(dir=path, validation_fraction=0.5))
  assert source.classes == classes
  held_out = [source.eval[i] for i in range(2)]
  examples = [source.train[i] for i in range(2)] + held_out
  assert {e.data: e.label for e in examples} == {image(n): numbers[n] for n in range(4)}
  assert {example.label for example in held_out} == set(numbers)


@pytest.mark.parametrize(
  ('columns', 'kind'),
  [
    (('img', 'fine_label'), IMAGE),
    (('image', 'label'), pyarrow.binary()),
    (('picture', 'kind'), pyarrow.large_binary()),  # known by the description alone
    (('image', 'labels'), pyarrow.struct([('bytes', pyarrow.binary())])),
  ],
)
def test_forms_of_columns(tmp_path, columns, kind):
  rows = [row if pyarrow.types.is_struct(kind) else row['bytes'] for row in colored(6)]
  names = ['a', 'b']
  write(tmp_path / 'train/0000.parquet', rows, [0, 1] * 3, names=names, columns=columns, kind=kind)
  write(tmp_path / 'test/0000.parquet', rows[4:], [0, 1], names=names, columns=columns, kind=kind)
  source = open_source(data_config(dir=tmp_path))
  assert [source.train[i].data for i in range(6)] == [image(n) for n in (0, 2, 4, 1, 3, 5)]
  assert [source.eval[i].label for i in range(2)] == [0, 1]


def test_rows_without_image_or_label(tmp_path):
  images = [*colored(5), None, {'bytes': None, 'path': 'elsewhere.png'}]
  images[3]['bytes'] = encoded(np.full((20, 24, 3), 99, np.uint8), 'JPEG', 'L')  # a gray one
  write(tmp_path / 'train-0.parquet', images, [0, 1, None, 1, 0, 0, 1])
  write(tmp_path / 'test-0.parquet', colored(2), [0, 1])
  source = open_source(data_config(dir=tmp_path))
  assert len(source.train) == 6
  assert source.found.endswith('ignored: 1 image(s) without a label')
  with pytest.raises(UserError, match=r'2 unreadable .*train-0.parquet, image [56]: '):
    prepared(tmp_path, tmp_path / 'store')
  made = prepared(tmp_path, tmp_path / 'store', unreadable='skip')
  assert len(made.train) == 4
  index = np.load(tmp_path / 'store/train/source_index.npy').tolist()
  place = index.index(source.train.keys.index(3))
  assert np.abs(made.train.images[place].astype(int) - 99).max() <= 1


def test_refusals(tmp_path):
  def start(name, count=2):
    root = tmp_path / name
    for number in range(count):
      path = root / f'train-{number:05}-of-{count:05}.parquet'
      write(path, colored(20), [0, 1] * 10, names=['a', 'b'], row_group_size=5)
    return root

  root = start('missing', 3)
  (root / 'train-00001-of-00003.parquet').unlink()
  refused(r'lacks 1 of the 3 files train-\*, the first is number 1', dir=root)
  root = start('several', 1)
  shutil.copytree(root, root / '320px')
  refused(r'several data sets, in .*several, .*320px: give data.dir one', dir=root)
  root = start('only', 1)
  (root / 'train-00000-of-00001.parquet').rename(root / 'validation-00000-of-00001.parquet')
  refused('has no files to train on', dir=root)
  root = start('strange', 1)
  write(root / 'validation-0.parquet', colored(2), [0, 2], names=['a', 'b'])
  refused('has 2 names of classes, and the label 2, allowed are 0 to 1', dir=root)
  write(root / 'validation-0.parquet', colored(2), [0.5, 1.5])
  refused("its column 'label' has '0.5', allowed are whole numbers and text", dir=root)
  write(root / 'validation-0.parquet', colored(2), [0, 1], columns=('image', 'other'))
  refused("has no column 'label', as other files here have", dir=root)
  path = write(tmp_path / 'x.parquet', colored(2), [0, 1], columns=('a', 'b'))
  refused("has the columns a, b: which of them is the image.* call it 'image'", dir=path)
  path = write(tmp_path / 'y.parquet', ['a', 'b'], [0, 1], kind=pyarrow.string())
  refused("its column 'image' is string, allowed are the bytes", dir=path)


@pytest.mark.parametrize('part', [0.01, 0.3, 0.7, 0.99])
def test_a_file_cut_short(tmp_path, part):
  path = write(tmp_path / 'train.parquet', colored(20), [0, 1] * 10)
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
  refused('train.parquet is cut short, damaged, or no parquet file .*fetch it again', dir=tmp_path)


def test_images_damaged_in_a_good_file(tmp_path):
  path = write(tmp_path / 'train.parquet', colored(20), [0, 1] * 10, write_page_checksum=False)
  data = bytearray(path.read_bytes())
  data[4:60] = bytes(56)
  path.write_bytes(data)
  with pytest.raises(UserError, match='is cut short, damaged'):
    prepared(tmp_path, tmp_path / 'store')
  assert not (tmp_path / 'store').exists()


def test_without_pyarrow(tmp_path, monkeypatch):
  write(tmp_path / 'train.parquet', colored(20), [0, 1] * 10)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  refused(r"needs pyarrow: pip install 'alexnet_jax\[parquet\]'", dir=tmp_path)


def test_other_images_are_another_data_set(tmp_path):
  images = colored(4)
  path = write(tmp_path / 'train.parquet', images, [0, 1] * 2, compression='none')
  before = open_source(data_config(dir=tmp_path)).fingerprint
  write(path, images, [0, 1] * 2, compression='none')
  assert open_source(data_config(dir=tmp_path)).fingerprint == before
  write(path, images, [1, 0] * 2, compression='none')
  assert open_source(data_config(dir=tmp_path)).fingerprint != before
  write(path, images[::-1], [0, 1] * 2, compression='none')
  assert open_source(data_config(dir=tmp_path)).fingerprint != before
