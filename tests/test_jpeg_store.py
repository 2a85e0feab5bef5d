"""Stores of JPEG: near the pixels of raw ones, whole or refused, with the same promises."""

import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from helpers.tiny_data import data_config, encoded
from PIL import Image

from alexnet_jax.data import feed, jpeg_images, order
from alexnet_jax.data.image_folder import open_folder
from alexnet_jax.data.preparation import prepare_store, store_path
from alexnet_jax.data.store import open_store, verify_store
from alexnet_jax.data.writer import write_store
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

SIZE = 48


def photo(rng):
  """Smooth random pixels with some noise, of any size."""
  coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
  width, height = rng.integers(50, 90, 2)
  smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  noisy = np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))
  return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of 40 + 14 images of two classes, and 3 that cannot be read."""
  root, rng = tmp_path_factory.mktemp('data') / 'photos', np.random.default_rng(0)
  for split, count in (('train', 20), ('validation', 7)):
    for name in ('ant', 'bee'):
      folder = root / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        (folder / f'{number:02}.png').write_bytes(encoded(photo(rng), 'PNG'))
  for name in ('train/ant/20.png', 'train/bee/05.png', 'validation/ant/00.png'):
    (root / name).write_bytes(b'no image')
  return root


def write(photos, path, encoding='jpeg 95', **options):
  options = {
    'image_size': SIZE,
    'resize': 'crop',
    'workers': 1,
    'rows_per_part': 8,
    'unreadable': 'skip',
  } | options
  return write_store(open_folder(photos, 0.25), path, encoding=encoding, **options)


@pytest.fixture(scope='module')
def stores(photos, tmp_path_factory):
  """The same images raw and as JPEG."""
  folder = tmp_path_factory.mktemp('stores')
  return write(photos, folder / 'raw', 'raw'), write(photos, folder / 'jpeg')


@pytest.fixture
def copy(stores, tmp_path):
  """The folder of a JPEG store that may be damaged."""
  return pathlib.Path(shutil.copytree(stores[1].path, tmp_path / 'jpeg'))


def test_pixels_are_near_the_raw_ones_and_statistics_are_theirs(stores):
  raw, jpeg = stores
  for name, count in (('train', 39), ('eval', 13)):
    one, other = getattr(raw, name), getattr(jpeg, name)
    assert len(one) == len(other) == count and other.images.shape == one.images.shape
    assert np.array_equal(one.labels, other.labels)
    difference = np.abs(np.asarray(other.images).astype(int) - one.images)
    assert 0 < difference.mean() < 3 and difference.mean((1, 2, 3)).max() < 5
    indices = [np.load(made.path / name / 'source_index.npy') for made in stores]
    assert np.array_equal(*indices)
  assert np.array_equal(raw.mean_image, jpeg.mean_image)
  assert np.array_equal(raw.color_stdevs, jpeg.color_stdevs)
  assert np.array_equal(raw.color_eigenvectors, jpeg.color_eigenvectors)


def test_the_feed_cannot_tell(stores):
  raw, jpeg = stores
  for split in (raw.train, jpeg.train, jpeg.train.first(11)):
    with feed.train_batches(split, seed=1, start_step=5, batch_size=16) as batches:
      batch = next(batches)
    rows = order.rows(1, 5, 16, len(split))
    assert np.array_equal(batch['image'], np.asarray(split.images)[rows])
    assert batch['image'].ctypes.data % 4096 == 0
    assert np.array_equal(feed.all_images(split), np.asarray(split.images))


def test_rows_are_an_array_when_asked(stores):
  rows = stores[1].train.images
  assert np.asarray(rows).dtype == np.uint8 and np.asarray(rows, np.float32).dtype == np.float32
  assert np.array_equal(np.asarray(rows[5:9]), np.asarray(rows)[5:9])
  assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(rows))), np.asarray(rows))


def test_both_decoders_agree_to_the_bit(stores, monkeypatch):
  if jpeg_images.simplejpeg is None:
    pytest.skip('needs simplejpeg')
  fast = np.asarray(stores[1].train.images)
  monkeypatch.setattr(jpeg_images, 'simplejpeg', None)
  assert np.array_equal(np.asarray(stores[1].train.images), fast)


def test_quality_is_what_was_asked(photos, tmp_path):
  sizes = []
  for quality in (50, 90):
    path = write(photos, tmp_path / str(quality), f'jpeg {quality}').path
    sizes.append(sum(file.stat().st_size for file in path.rglob('*.jpegs')))
  assert sizes[0] < 0.8 * sizes[1]  # of small images, headers are a good part


def test_verify_names_the_file_that_has_changed(copy):
  verify_store(copy)
  file = copy / 'train/images-00002.jpegs'
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)
  with pytest.raises(UserError, match='it was written: train/images-00002.jpegs;'):
    verify_store(copy)


@pytest.mark.parametrize(
  'damage',
  [
    lambda path: (path / 'train/places.npy').unlink(),
    lambda path: np.save(path / 'train/places.npy', np.zeros((39, 3), np.int64)),
    lambda path: (path / 'eval/images-00001.jpegs').unlink(),
    lambda path: os.truncate(path / 'train/images-00003.jpegs', 500),
  ],
)
def test_damage_is_seen_when_opening(copy, damage):
  damage(copy)
  with pytest.raises(UserError, match='is damaged .*: delete it and prepare again'):
    open_store(copy)


@pytest.mark.parametrize(
  'spoil',
  [lambda file: os.truncate(file, 100), lambda file: file.write_bytes(b'x' * file.stat().st_size)],
)
@pytest.mark.parametrize('pillow', [True, False])
def test_damage_after_opening_is_an_error(copy, monkeypatch, spoil, pillow):
  if pillow:
    monkeypatch.setattr(jpeg_images, 'simplejpeg', None)
  elif jpeg_images.simplejpeg is None:
    pytest.skip('needs simplejpeg')
  opened = open_store(copy)
  spoil(copy / 'eval/images-00000.jpegs')
  with feed.eval_batches(opened.eval, batch_size=13) as batches:
    with pytest.raises(UserError, match=r'images-00000.jpegs is damaged at byte \d+: '):
      next(batches)


def test_from_a_configuration(photos, tmp_path):
  root = pathlib.Path(shutil.copytree(photos, tmp_path / 'photos'))
  options = {'dir': root, 'image_size': SIZE, 'unreadable': 'skip'}
  config = data_config(**options, encoding='jpeg', jpeg_quality=80)
  assert store_path(config) == tmp_path / f'photos-stores/photos-{SIZE}-crop-jpeg80'
  made = prepare_store(config, workers=1, progress=Console(quiet=True))
  assert made.meta['encoding'] == 'jpeg 80'
  assert len(prepare_store(config).train) == 39
  for changes in ({'encoding': 'raw'}, {'encoding': 'jpeg', 'jpeg_quality': 81}):
    with pytest.raises(UserError, match='has encoding jpeg 80, this configuration wants '):
      prepare_store(data_config(**options, **changes, store=made.path))
  shutil.rmtree(root)
  with pytest.raises(UserError, match='has encoding jpeg 80'):
    prepare_store(data_config(**options, store=made.path))
