"""Stores of JPEG: near the pixels of raw ones, with their statistics, whole or refused."""

import os
import pickle

import numpy as np
import pytest
from helpers.tiny_data import data_config, write_folder
from PIL import Image

from alexnet_jax.data import feed, stored_images
from alexnet_jax.data.examples import Example, Source
from alexnet_jax.data.preparation import prepare_store, store_path
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


def write(path, encoding):
  """A store of 39 + 13 images of two classes; always the same images."""
  rng = np.random.default_rng(0)
  train, validation = (
    [Example(photo(rng), number % 2, f'{number}') for number in range(count)] for count in (39, 13)
  )
  source = Source('photos', ('ant', 'bee'), train, validation, 'x')
  options = {'image_size': SIZE, 'resize': 'crop', 'workers': 1, 'rows_per_part': 8}
  return write_store(source, path, encoding=encoding, **options)


def test_pixels_are_near_the_raw_ones_and_statistics_are_theirs(tmp_path):
  stores = [write(tmp_path / name, name) for name in ('raw', 'jpeg 95', 'jpeg 50')]
  raw, jpeg, coarse = stores
  for name in ('train', 'eval'):
    one, other = getattr(raw, name), getattr(jpeg, name)
    assert other.images.shape == one.images.shape and np.array_equal(one.labels, other.labels)
    difference = np.abs(np.asarray(other.images).astype(int) - one.images)
    assert 0 < difference.mean() < 3 and difference.mean((1, 2, 3)).max() < 5
    indices = [np.load(made.path / name / 'source_index.npy') for made in (raw, jpeg)]
    assert np.array_equal(*indices)
  for field in ('mean_image', 'color_stdevs', 'color_eigenvectors'):
    assert np.array_equal(getattr(raw, field), getattr(jpeg, field))
  # Of small images, headers are a good part.
  small, large = (
    sum(file.stat().st_size for file in made.path.rglob('*.jpegs')) for made in (coarse, jpeg)
  )
  assert small < 0.6 * large


def test_rows_are_an_array_when_asked(tmp_path, monkeypatch):
  rows = write(tmp_path / 'store', 'jpeg 90').train.images
  pixels = np.asarray(rows)
  assert pixels.dtype == np.uint8 and np.asarray(rows, np.float32).dtype == np.float32
  assert np.array_equal(np.asarray(rows[5:9]), pixels[5:9])
  assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(rows))), pixels)
  monkeypatch.setattr(stored_images, 'simplejpeg', None)
  assert np.array_equal(np.asarray(rows), pixels)  # both decoders, to the bit


@pytest.mark.parametrize(
  'spoil',
  [lambda file: os.truncate(file, 100), lambda file: file.write_bytes(b'x' * file.stat().st_size)],
)
@pytest.mark.parametrize('pillow', [True, False])
def test_damage_after_opening_is_an_error(tmp_path, monkeypatch, spoil, pillow):
  if pillow:
    monkeypatch.setattr(stored_images, 'simplejpeg', None)
  opened = write(tmp_path / 'store', 'jpeg 90')
  spoil(tmp_path / 'store/eval/images-00000.jpegs')
  with feed.eval_batches(opened.eval, batch_size=13) as batches:
    with pytest.raises(UserError, match=r'images-00000.jpegs is damaged at byte \d+: '):
      next(batches)


def test_from_a_configuration(tmp_path):
  options = {'dir': write_folder(tmp_path / 'data', train=2, held_out=1), 'image_size': SIZE}
  config = data_config(**options, encoding='jpeg', jpeg_quality=80)
  assert store_path(config) == tmp_path / f'data-stores/data-{SIZE}-crop-jpeg80'
  made = prepare_store(config, workers=1, progress=Console(quiet=True))
  assert made.meta['encoding'] == 'jpeg 80'
  for changes in ({'encoding': 'raw'}, {'encoding': 'jpeg', 'jpeg_quality': 81}):
    with pytest.raises(UserError, match='has encoding jpeg 80, this configuration wants '):
      prepare_store(data_config(**options, **changes, store=made.path))
