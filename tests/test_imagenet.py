"""ImageNet: from archives or folders of true structure to rows of the right class."""

import collections
import importlib.util
import os
import pathlib
import random
import re

import numpy as np
import pytest
from helpers.tiny_data import data_config, encoded, write_imagenet_archives

from alexnet_jax.data import imagenet, images, tfds_prepare, tfds_source
from alexnet_jax.data.image_folder import open_folder
from alexnet_jax.data.preparation import open_source, prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

SIZE = 32
# Names are of the two kinds that TFDS repairs: its list of CMYK images, and its only PNG.
CMYK, PNG = 'n01739381_1309.JPEG', 'n02105855_2933.JPEG'


def plain(color, file_format='JPEG', mode='RGB'):
  """An image of one color, larger than it will be stored."""
  return encoded(np.full((40, 50, 3), color, np.uint8), file_format, mode)


def generated_files():
  """WNID -> {file name: image}, a color each, in no order; and validation images."""
  colors = random.Random(0)
  train = {
    wnid: {
      f'{wnid}_{number}.JPEG': plain([colors.randrange(256) for _ in range(3)])
      for number in range(2)
    }
    for wnid in ('n15075141', 'n02119789', 'n01440764', 'n01739381', 'n02105855')
  }
  train['n01739381'][CMYK] = plain([10, 200, 90], mode='CMYK')
  train['n02105855'][PNG] = plain([200, 20, 90], file_format='PNG')
  return train, [plain([40 * number, 255 - 40 * number, 100]) for number in range(6)]


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
  """A TFDS directory with the two archives, and what is in them."""
  train, validation = generated_files()
  if any(importlib.util.find_spec(name) is None for name in tfds_prepare.NEEDED_MODULES):
    pytest.skip('needs TensorFlow to prepare data sets')
  directory = tmp_path_factory.mktemp('tfds')
  write_imagenet_archives(directory / 'downloads/manual', train, validation)
  return directory, train, validation


@pytest.mark.slow
def test_from_archives_to_the_store(archives, monkeypatch, tmp_path):
  """TFDS's own builder, in its child process, then the store."""
  directory, train, validation = archives
  files = {name: data for files in train.values() for name, data in files.items()}
  counts = {'train': len(files), 'validation': len(validation)}
  config = data_config(
    source='tfds',
    name='imagenet2012',
    dir=directory,
    eval_split='validation',
    image_size=SIZE,
    num_classes=1000,
    store=tmp_path / 'store',
  )
  tfds_prepare.ensure_prepared('imagenet2012', directory, print)
  with pytest.raises(UserError, match=f'has {len(files)} train examples instead of 1,281,167'):
    prepare_store(config, progress=Console(quiet=True))
  monkeypatch.setattr(tfds_source, 'EXPECTED_COUNTS', {'imagenet2012': counts})
  made = prepare_store(config, progress=Console(quiet=True), workers=1)
  assert made.classes == imagenet.published_classes() and made.class_names == made.classes
  source = open_source(config)

  seen = set()
  for row, index in enumerate(np.load(tmp_path / 'store/train/source_index.npy')):
    name = source.train[int(index)].name.split()[-1]
    assert made.classes[made.train.labels[row]] == name.split('_')[0]
    expected = images.read_image(files[name], SIZE, 'crop').astype(int)
    repaired = name in (CMYK, PNG)  # TFDS encodes those once more
    assert np.abs(made.train.images[row] - expected).max() <= (8 if repaired else 0), name
    seen.add(name)
  assert seen == set(files)

  shipped = imagenet.validation_labels(pathlib.Path('/absent'))[0]
  for row, index in enumerate(np.load(tmp_path / 'store/eval/source_index.npy')):
    number = int(re.search(r'val_(\d+)', source.eval[int(index)].name)[1])
    assert made.classes[made.eval.labels[row]] == shipped[number - 1]
    expected = images.read_image(validation[number - 1], SIZE, 'crop')
    assert np.array_equal(made.eval.images[row], expected)
  tfds_prepare.ensure_prepared('imagenet2012', directory, pytest.fail)  # nothing left to do


# What TFDS ships.


def test_classes_and_validation_labels():
  classes = imagenet.published_classes()
  assert len(set(classes)) == 1000 and list(classes) == sorted(classes)
  assert all(imagenet.WNID.fullmatch(name) for name in classes)
  # As in Caffe's synset_words.txt: tench, goldfish, ..., toilet tissue.
  assert classes[:2] == ('n01440764', 'n01443537') and classes[-1] == 'n15075141'
  labels, origin = imagenet.validation_labels(pathlib.Path('/absent'))
  assert len(labels) == 50_000 and origin == 'tensorflow-datasets'
  assert collections.Counter(labels) == dict.fromkeys(classes, 50)


# Folders.


def write_classes(root, wnids):
  """Two training images a class, made in the order given."""
  for wnid in wnids:
    (root / 'train' / wnid).mkdir(parents=True)
    for number in range(2):
      (root / 'train' / wnid / f'{wnid}_{number}.JPEG').write_bytes(plain(number))


def write_flat(root, numbers, name='val'):
  """Validation images of these numbers, whose color is the number."""
  (root / name).mkdir()
  for number in numbers:
    (root / name / f'ILSVRC2012_val_{number:08}.JPEG').write_bytes(plain(number))


def write_devkit(folder, wnids, labels):
  """A devkit whose ILSVRC2012_ID follows the order of `wnids`; `labels` are WNIDs."""
  io = pytest.importorskip('scipy.io')
  folder.mkdir(parents=True, exist_ok=True)
  fields = 'ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images'
  fields = fields.split()
  synsets = np.zeros((len(wnids) + 1, 1), [(field, object) for field in fields])
  for number, wnid in enumerate([*wnids, 'n00001740']):  # the last is an inner one, as in the real
    inner = number == len(wnids)
    words, children = f'words of {wnid}, more', [1, 2] if inner else []
    synsets[number, 0] = (number + 1, wnid, words, 'gloss', 2 * inner, children, int(inner), 2)
  io.savemat(folder / 'meta.mat', {'synsets': synsets})
  truth = ''.join(f'{list(wnids).index(label) + 1}\n' for label in labels)
  (folder / imagenet.GROUND_TRUTH).write_text(truth)


def seen_labels(source):
  """Number of each validation image -> its WNID; the image's color must agree with its name."""
  result = {}
  for index in range(len(source.eval)):
    example = source.eval[index]
    number = int(re.search(r'val_(\d+)', example.name)[1])
    assert abs(int(images.read_image(example.data, 8, 'crop')[0, 0, 0]) - number) <= 1
    result[number] = source.classes[example.label]
  return result


def test_folder_classes_are_in_the_order_of_tfds(tmp_path):
  chosen = imagenet.published_classes()[::37]
  write_classes(tmp_path, random.Random(1).sample(chosen, len(chosen)))
  assert open_folder(tmp_path, 0.5).classes == chosen


@pytest.mark.parametrize('name', ['val', 'validation'])
def test_flat_validation_without_a_devkit(tmp_path, name):
  shipped = imagenet.validation_labels(tmp_path)[0]
  numbers = [1, 2, 3, 7, 100]  # with gaps: the number counts, not the place
  write_classes(tmp_path, {shipped[number - 1] for number in numbers})
  write_flat(tmp_path, numbers, name)
  assert seen_labels(open_folder(tmp_path, 0.5)) == {n: shipped[n - 1] for n in numbers}


@pytest.mark.parametrize('folder', imagenet.FOLDERS)
def test_devkit_whose_ids_are_not_in_the_order_of_wnids(tmp_path, folder):
  wnids = ('n02119789', 'n02100735', 'n15075141', 'n01440764', 'n02110185')
  labels = [wnids[i] for i in (3, 0, 4, 4, 1, 2, 0)]
  write_classes(tmp_path, wnids)
  write_flat(tmp_path, range(1, 8))
  write_devkit(tmp_path / folder, wnids, labels)
  source = open_folder(tmp_path, 0.5)
  assert source.classes == tuple(sorted(wnids))
  assert seen_labels(source) == dict(enumerate(labels, 1))
  assert source.class_names == tuple(f'words of {wnid}, more' for wnid in sorted(wnids))
  assert [source.eval.labels.count(i) for i in range(5)] == [1, 1, 2, 2, 1]
  write_devkit(tmp_path / folder, wnids, labels[::-1])  # other labels are other data
  assert open_folder(tmp_path, 0.5).fingerprint != source.fingerprint


def test_words_of_the_classes(tmp_path):
  root = tmp_path / 'data'
  write_classes(root, ('n01443537', 'n01440764'))
  assert open_folder(root, 0.5).class_names == ()
  (root / 'LOC_synset_mapping.txt').write_text('n01440764 tench, Tinca tinca\nn01484850 a shark\n')
  config = data_config(dir=root, store=tmp_path / 'store')
  made = prepare_store(config, workers=1, progress=Console(quiet=True))
  assert made.classes == ('n01440764', 'n01443537')
  assert made.class_names == ('tench, Tinca tinca', 'n01443537')
  (root / 'LOC_synset_mapping.txt').unlink()  # names are no part of what a store is
  assert prepare_store(config).class_names == made.class_names


@pytest.mark.parametrize(
  ('spoil', 'match'),
  [
    (lambda root: (root / 'meta.mat').unlink(), 'put that beside it, or remove it'),
    (lambda root: (root / 'meta.mat').write_bytes(b'x' * 200), 'is not the meta.mat of ILSVRC'),
    (lambda root: (root / imagenet.GROUND_TRUTH).write_text('1\n99\n'), 'no class of .*99'),
    (lambda root: (root / imagenet.GROUND_TRUTH).write_text('1\n'), '00000002.JPEG is not ILSVRC'),
    (
      lambda root: (root / 'val/ILSVRC2012_test_00000001.JPEG').write_bytes(b''),
      'ILSVRC2012_test_00000001.JPEG is not ILSVRC2012_val_00000001.JPEG to 00000002',
    ),
    (lambda root: (root / 'val/n02119789').mkdir(), 'val has folders and 2 images beside them'),
    (lambda root: os.rename(root / 'train/n02100735', root / 'gone'), "the first is 'n02100735'"),
  ],
)
def test_what_is_wrong_with_flat_validation(tmp_path, spoil, match):
  wnids = ('n02119789', 'n02100735')
  write_classes(tmp_path, wnids)
  write_flat(tmp_path, (1, 2))
  write_devkit(tmp_path, wnids, wnids)
  open_folder(tmp_path, 0.5)
  spoil(tmp_path)
  with pytest.raises(UserError, match=match) as caught:
    open_folder(tmp_path, 0.5)
  assert '\n' not in str(caught.value)


# As Kaggle packs it.


def write_kaggle(top, wnids, labels):
  """What the archive of Kaggle's competition unpacks to; `labels` are WNIDs by number."""
  images_folder = top / 'ILSVRC/Data/CLS-LOC'
  write_classes(images_folder, wnids)
  write_flat(images_folder, range(1, len(labels) + 1))
  (images_folder / 'test').mkdir()
  for number in range(3):
    (images_folder / f'test/ILSVRC2012_test_{number:08}.JPEG').write_bytes(plain(9))
  (top / 'ILSVRC/Annotations/CLS-LOC/val').mkdir(parents=True)
  (top / 'ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml').write_text('<annotation/>')
  (top / 'ILSVRC/ImageSets/CLS-LOC').mkdir(parents=True)
  rows = [
    f'ILSVRC2012_val_{n:08},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n' for n, wnid in enumerate(labels, 1)
  ]
  random.Random(0).shuffle(rows)
  (top / 'LOC_val_solution.csv').write_text('ImageId,PredictionString\n' + ''.join(rows))
  (top / 'LOC_synset_mapping.txt').write_text(''.join(f'{w} words of {w}, more\n' for w in wnids))
  return images_folder


@pytest.mark.parametrize('level', ['', 'ILSVRC', 'ILSVRC/Data', 'ILSVRC/Data/CLS-LOC'])
def test_kaggle_from_any_level(tmp_path, level, monkeypatch):
  wnids = ('n02119789', 'n02100735', 'n15075141')
  labels = [wnids[i] for i in (2, 0, 1, 1, 2, 0, 0)]  # not those that TFDS ships
  inner = write_kaggle(tmp_path / 'kaggle', wnids, labels)
  source = open_folder(tmp_path / 'kaggle' / level, 0.5)
  assert source.name == 'imagenet' and source.classes == tuple(sorted(wnids))
  assert source.class_names == tuple(f'words of {wnid}, more' for wnid in sorted(wnids))
  assert seen_labels(source) == dict(enumerate(labels, 1)) and len(source.train) == 6
  assert source.found.startswith(f'ImageNet as Kaggle packs it, at {inner}: ')
  assert source.found.endswith('ignored: test/ with 3 images')
  monkeypatch.chdir(inner.parent)  # a relative path is as good
  assert open_folder(pathlib.Path('CLS-LOC'), 0.5).fingerprint == source.fingerprint


@pytest.mark.parametrize(
  ('line', 'match'),
  [
    ('ILSVRC2012_val_00000001;n02119789\n', "line 4: 'ILSVRC2012_val_00000001;n02119789' is not"),
    ('ILSVRC2012_val_00000002,fox 1 2 3 4\n', 'line 4: .* is not like'),
    ('ILSVRC2012_val_99999999,n02119789 1 2 3 4\n', 'line 4: .* is not like'),
    (None, 'ILSVRC2012_val_00000002.JPEG is not ILSVRC2012_val_00000001.JPEG to 00000001'),
  ],
)
def test_a_damaged_solution_of_kaggle(tmp_path, line, match):
  wnids = ('n02119789', 'n02100735')
  write_kaggle(tmp_path, wnids, wnids)
  solution = tmp_path / imagenet.KAGGLE_TRUTH
  if line:
    solution.write_text(solution.read_text() + line)
  else:
    solution.write_text('ImageId,PredictionString\nILSVRC2012_val_00000001,n02119789 1 2 3 4\n')
  with pytest.raises(UserError, match=match):
    open_folder(tmp_path, 0.5)


def test_kaggle_without_its_lists(tmp_path):
  """Labels are then those that TFDS ships."""
  shipped = imagenet.validation_labels(tmp_path)[0]
  wnids = sorted(set(shipped[:4]))
  write_kaggle(tmp_path, wnids, shipped[:4])
  for file in (imagenet.KAGGLE_TRUTH, 'LOC_synset_mapping.txt'):
    (tmp_path / file).unlink()
  source = open_folder(tmp_path, 0.5)
  assert seen_labels(source) == dict(enumerate(shipped[:4], 1)) and source.class_names == ()
