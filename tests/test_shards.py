"""WebDataset shards: the store is that of a folder of the same images, and clear refusals."""

import gzip
import json
import pickle
import tarfile

import numpy as np
import pytest
from helpers.tiny_data import add_to_archive, data_config, encoded, refused, write_folder

from alexnet_jax.data.preparation import open_source, prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console


def image(number, mode='RGB'):
  """An image file of one color, which is its number."""
  return encoded(np.full((20, 24, 3), number, np.uint8), 'PNG', mode)


def write(path, samples):
  """A shard of samples, each {extension: bytes or text}, or (its key, that)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as tar:
    for number, sample in enumerate(samples):
      key, files = sample if isinstance(sample, tuple) else (f'{number:06}', sample)
      for extension, data in files.items():
        add_to_archive(tar, f'{key}.{extension}', data.encode() if isinstance(data, str) else data)
  return path


def colored(labels):
  return [{'png': image(number), 'cls': str(label)} for number, label in enumerate(labels)]


def prepared(root, store, **changes):
  config = data_config(dir=root, store=store, **changes)
  return prepare_store(config, progress=Console(quiet=True), workers=1)


def test_the_store_is_that_of_the_folder(tmp_path):
  """Written by WebDataset itself: the same rows to the byte."""
  webdataset = pytest.importorskip('webdataset')
  folder = write_folder(tmp_path / 'folder', train=20, held_out=7)
  source = open_source(data_config(dir=folder))
  for name, split in (('train', source.train), ('validation', source.eval)):
    examples = [split[i] for i in range(len(split))]
    (tmp_path / 'packed').mkdir(exist_ok=True)
    pattern = f'{tmp_path}/packed/imagenet1k-{name}-%04d.tar'
    with webdataset.ShardWriter(pattern, maxcount=11, verbose=0) as shards:
      for number, example in enumerate(examples):
        extra = {'json': {'label': example.label, 'width': 3}} if number % 2 else {}
        shards.write({'__key__': f'{number:08}', 'png': example.data, 'cls': example.label} | extra)
  (tmp_path / 'packed/classnames.txt').write_text('ant\nbee\ncat\n')
  prepared(folder, tmp_path / 'one')
  found = prepared(tmp_path / 'packed', tmp_path / 'other')
  assert found.classes == ('ant', 'bee', 'cat')
  for name in ('train', 'eval'):
    for file in ('images', 'labels', 'source_index'):
      path = f'{name}/{file}.npy'
      assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'other' / path).read_bytes()
  packed = open_source(data_config(dir=tmp_path / 'packed'))
  assert packed.found == (
    f'WebDataset shards, at {tmp_path}/packed: 60 training and 21 validation images (validation) of'
    ' 3 classes, the smallest ant with 20, the largest ant with 20'
  )
  example = pickle.loads(pickle.dumps(packed.train))[12]
  assert example.data == source.train[12].data
  assert example.name == f'{tmp_path}/packed/imagenet1k-train-0001.tar, image 1'


def test_imagenet_shards(tmp_path):
  """Names in the JSON have WNIDs, whose order is not that of the labels."""
  wnids = ['n02012849', 'n01440764']
  for name, labels in (('train', (0, 1, 1, 0)), ('validation', (1, 0))):
    samples = [
      {
        'jpg': encoded(np.full((9, 9, 3), 50 * label, np.uint8)),
        'json': json.dumps({'filename': f'{wnids[label]}_{n}.JPEG', 'label': label}),
      }
      for n, label in enumerate(labels)
    ]
    write(tmp_path / f'imagenet1k-{name}-0000.tar', samples)
  source = open_source(data_config(dir=tmp_path))
  assert source.classes == tuple(sorted(wnids))
  assert (source.train.labels, source.train.keys) == ((0, 0, 1, 1), (1, 2, 0, 3))
  assert [source.eval[i].label for i in range(2)] == [0, 1]


def test_labels(tmp_path):
  """Text as labels; one shard, from which a part of each class is held out."""
  gray = image(40, 'L')
  samples = [
    {'png': image(0), 'cls': 'b\n'},
    {'cls': 'a', 'png': image(1), 'seg.png': b'?', 'txt': 'a caption'},
    ('deep/000001', {'png': image(2)}),  # of another folder, without a label
    ('deep/000002', {'json': '{"label": "a"}', 'PNG': gray}),
    ('deep/000003', {'json': '{"caption": "none"}', 'png': image(3), 'cls': ''}),
    ('deep/000004', {'cls': 'a'}),
    {'png': image(5), 'cls': 'b'},
  ]
  path = write(tmp_path / 'some.tar', samples)
  source = open_source(data_config(dir=path, validation_fraction=0.5))
  assert source.classes == ('a', 'b')
  examples = [split[i] for split in (source.train, source.eval) for i in range(2)]
  assert {e.data: e.label for e in examples} == {image(0): 1, image(1): 0, gray: 0, image(5): 1}
  assert sorted(example.label for example in examples[2:]) == [0, 1]
  ending = 'ignored: 1 sample(s) without an image, 2 image(s) without a label'
  assert source.found.endswith(ending)


def test_a_shard_cut_anywhere(tmp_path):
  path = write(tmp_path / 'train-0000.tar', colored([0, 1, 0, 1]))
  data = path.read_bytes()
  end = len(data.rstrip(b'\0'))
  assert end > 3000
  for size in range(0, end, 500):
    path.write_bytes(data[:size])
    refused('train-0000.tar is cut short, damaged, or no tar file', dir=tmp_path)
  for size in range(512, end, 512):  # between a header and what it is of
    path.write_bytes(data[:size])
    refused('train-0000.tar is cut short, damaged, or no tar file', dir=tmp_path)
  path.write_bytes(data)
  with tarfile.open(path) as tar:
    places = [member.offset for member in tar]
  for place in places:
    path.write_bytes(data[:place] + b'?' * 512 + data[place + 512 :])
    refused('train-0000.tar is cut short, damaged, or no tar file', dir=tmp_path)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
  path = write(tmp_path / 'train-0000.tar', colored([0, 1, 0, 1]))
  source = open_source(data_config(dir=tmp_path, validation_fraction=0.5))
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(UserError, match='can no longer be read .it was cut off'):
    source.train[1]
  path.unlink()
  with pytest.raises(UserError, match='can no longer be read .*No such file'):
    source.train[1]


def test_refusals(tmp_path):
  labels = [0, 1, 0, 1]
  for number in (0, 1, 3):
    write(tmp_path / f'holes/train-{number:04}.tar', colored(labels))
  refused(r'lacks 1 of the 4 files train-\*, the first is number 2', dir=tmp_path / 'holes')
  write(tmp_path / 'strange/train-0.tar', colored(labels))
  write(tmp_path / 'strange/val-0.tar', colored([0, 7]))
  refused('of 1 class.es. that no training image has, the first is 7', dir=tmp_path / 'strange')
  path = write(tmp_path / 'two.tar', [{'jpg': image(1), 'png': image(2), 'cls': '1'}])
  refused('the sample 000000 has two images, one of them 000000.png', dir=path)
  path = write(tmp_path / 'list.tar', [{'jpg': image(1), 'json': '{"label": [1, 2]}'}])
  refused(r'000000.json is no label .its label is \[1, 2\]', dir=path)
  path = write(tmp_path / 'broken.tar', [{'jpg': image(1), 'json': '{'}])
  refused('000000.json is no label', dir=path)
  path = write(tmp_path / 'ILSVRC2012_img_train.tar', [('n01440764', {'tar': b'...'})])
  refused('has no images .*--config.data.source=tfds', dir=path)
  path = write(tmp_path / 'unlabeled.tar', [{'jpg': image(1)}] * 2)
  refused('has no training image with a label', dir=path)
  (tmp_path / 'packed').mkdir()
  (tmp_path / 'packed/train-0.tar.gz').write_bytes(gzip.compress(path.read_bytes()))
  refused('train-0.tar.gz is compressed, .*with gunzip', dir=tmp_path / 'packed')
