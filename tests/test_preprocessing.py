"""Views against NumPy slicing, the published color statistics, and torch's enlargement."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import get_config
from scipy import stats

from alexnet_jax.data.store import Split, Store
from alexnet_jax.model.preprocessing import VIEWS, Preprocessing, central, example_keys
from alexnet_jax.train.experiment import make_color_noise, make_preprocessing
from alexnet_jax.train.schedules import Calendar


def preprocessing(crop, **changes):
  """Cuts and mirrors alone: no mean, no scale."""
  plain = Preprocessing(
    crop=crop,
    mean=np.zeros(3, np.float32),
    scale=np.ones(3, np.float32),
    color_basis=np.eye(3, dtype=np.float32),
  )
  return dataclasses.replace(plain, **changes)


def keys_of(count, seed=0, step=0):
  return example_keys(seed, jnp.int32(step), jnp.arange(count))


def training_views(prepare, images, keys, noise=0.0):
  return np.asarray(jax.jit(prepare.training_views)(images, keys, jnp.float32(noise)))


def fixed_views(prepare, images, views):
  """(number of views, N, crop, crop, 3)."""
  view_of = jax.jit(prepare.test_view)
  return np.array([view_of(images, jnp.asarray(view, jnp.float32)) for view in views])


def random_images(count, side, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def coordinates(count, side):
  """Images whose pixel at row r and column c is (r, c, 0): a view tells where it was cut."""
  rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing='ij')
  image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
  return np.broadcast_to(image, (count, *image.shape))


# Training views.


@pytest.mark.usefixtures('compiled_for')
def test_every_view_is_a_window_of_its_image_and_half_are_mirrored():
  images = random_images(60, 64)
  views = training_views(preprocessing(60), images, keys_of(60))
  assert views.shape == (60, 60, 60, 3) and views.dtype == np.float32
  found = []
  for image, view in zip(images, views, strict=True):
    windows = [
      (row, column, mirrored)
      for row, column, mirrored in itertools.product(range(5), range(5), (0, 1))
      if np.array_equal(
        image[row : row + 60, column : column + 60][:, :: -1 if mirrored else 1], view
      )
    ]
    assert len(windows) == 1
    found += windows
  rows, columns, mirrored = (set(part) for part in zip(*found, strict=True))
  assert rows == columns == set(range(5)) and mirrored == {0, 1}


def test_all_offsets_are_equally_likely_and_independent():
  """The 33 x 33 places of a 224 crop in 256 pixels, on crops of 2 in 34."""
  cut = jax.jit(preprocessing(2).training_views)
  images = jnp.asarray(coordinates(8192, 34))
  counts = np.zeros((33, 33, 2), int)
  for step in range(8):
    views = np.asarray(cut(images, keys_of(8192, step=step), jnp.float32(0))).astype(int)
    mirrored = views[:, 0, 0, 1] > views[:, 0, 1, 1]
    np.add.at(counts, (views[:, 0, 0, 0], views[:, 0, :, 1].min(1), mirrored.astype(int)), 1)
  assert counts.sum() == 65536 and counts.sum(2).min() > 0
  assert stats.chisquare(counts.sum(2).ravel()).pvalue > 1e-3
  assert stats.chisquare(counts.sum((0, 1))).pvalue > 1e-3  # half are mirrored
  assert stats.chisquare(counts.ravel()).pvalue > 1e-3  # wherever they were cut


def test_without_random_crop_or_mirror_the_view_is_central():
  images = random_images(20, 13)
  central = images[:, 2:10, 2:10]
  plain = preprocessing(8, random_crop=False, random_flip=False)
  np.testing.assert_array_equal(training_views(plain, images, keys_of(20)), central)
  views = training_views(preprocessing(8, random_crop=False), images, keys_of(20))
  straight = (views == central).all((1, 2, 3))
  mirrored = (views == central[:, :, ::-1]).all((1, 2, 3))
  assert (straight ^ mirrored).all() and straight.any() and mirrored.any()


def test_the_central_crop_of_the_mean_is_subtracted_wherever_the_view_was_cut():
  mean_image = np.random.default_rng(1).uniform(0, 255, (16, 16, 3)).astype(np.float32)
  mean = central(mean_image, 10)
  np.testing.assert_array_equal(mean, mean_image[3:13, 3:13])
  scale = np.array([1, 0.5, 2], np.float32)
  prepare = preprocessing(10, mean=mean, scale=scale)
  images = np.full((30, 16, 16, 3), 100, np.uint8)
  expected = np.broadcast_to((100 - mean) * scale, (30, 10, 10, 3))
  np.testing.assert_allclose(training_views(prepare, images, keys_of(30)), expected, rtol=1e-6)
  for view in fixed_views(prepare, images, VIEWS[10]):
    np.testing.assert_allclose(view, expected, rtol=1e-6)


def test_a_view_depends_on_its_own_key_alone():
  images = random_images(12, 14)
  prepare = preprocessing(10)
  keys = keys_of(12)
  views = training_views(prepare, images, keys, 0.1)
  order = np.array([7, 0, 3])
  np.testing.assert_array_equal(
    training_views(prepare, images[order], keys[order], 0.1), views[order]
  )


# Color noise.


@pytest.fixture(scope='module')
def store():
  """A store whose statistics look like none that are published."""
  rng = np.random.default_rng(5)
  vectors, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  split = Split(np.zeros((2, 40, 40, 3), np.uint8), np.zeros(2, np.int32))
  mean_image = rng.uniform(50, 200, (40, 40, 3)).astype(np.float32)
  stdevs = np.array([3.0, 10.0, 50.0])
  return Store(None, ('a', 'b'), split, split, mean_image, stdevs, vectors, {})


def config_of(**settings):
  config = get_config('imagenet')
  config.input.crop = 32
  config.data.image_size = 40
  config.input.update(settings)
  return config


def color_shifts(prepare, noise, count=20_000):
  images = np.full((count, 1, 1, 3), 100, np.uint8)
  prepare = dataclasses.replace(prepare, crop=1, mean=np.zeros(3, np.float32))
  return training_views(prepare, images, keys_of(count), noise)[:, 0, 0]


def test_color_noise_has_the_published_covariance(store):
  shifts = color_shifts(make_preprocessing(config_of(), store), 0.1)
  # cuda-convnet2 make-data/input_meta: rows R, G, B; a column and a standard deviation each.
  vectors = np.array(
    [
      [0.417955, -0.712579, -0.563510],
      [-0.816981, -0.023542, -0.576184],
      [0.397311, 0.701196, -0.592003],
    ]
  )
  covariance = 0.01 * vectors @ np.diag(np.array([19.7208, 37.0939, 121.7801]) ** 2) @ vectors.T
  # The standard deviations of the pixels that this implies.
  np.testing.assert_allclose(10 * np.sqrt(np.diag(covariance)), [74.0, 72.0, 77.0], atol=0.1)
  expected = covariance / 1.1**2
  measured = np.cov(shifts.T)
  assert np.linalg.norm(measured - expected) < 0.04 * np.linalg.norm(expected)
  weakest = vectors[:, 0]  # the norm above would not see it
  assert weakest @ measured @ weakest == pytest.approx((1.97208 / 1.1) ** 2, rel=0.05)
  np.testing.assert_allclose(shifts.mean(0), 100 / 1.1, atol=4 * 7.5 / math.sqrt(20_000))
  main = shifts @ vectors[:, 2]
  assert stats.kstest((main - main.mean()) / main.std(), 'norm').pvalue > 1e-3


def test_color_noise_from_the_datas_own_components(store):
  prepare = make_preprocessing(config_of(color_statistics='data'), store)
  measured = np.cov(color_shifts(prepare, 0.5).T)
  vectors = store.color_eigenvectors
  expected = 0.25 / 1.5**2 * vectors @ np.diag([9.0, 100.0, 2500.0]) @ vectors.T
  assert np.linalg.norm(measured - expected) < 0.04 * np.linalg.norm(expected)


def test_color_noise_is_one_shift_per_channel_and_image():
  images = random_images(10, 12)
  prepare = preprocessing(
    12, random_crop=False, random_flip=False, scale=np.array([1, 2, 4], np.float32)
  )
  views = training_views(prepare, images, keys_of(10), 5.0)
  shifts = views * 6 / np.array([1, 2, 4]) - images
  np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-2)
  assert len(np.unique(shifts[:, 0, 0].round(3))) == 30  # another one for each


def test_color_noise_ends_at_its_epoch():
  calendar = Calendar(examples=1000, batch_size=100, epochs=90)
  settings = config_of(color_noise_epochs=67.0).input
  noise = make_color_noise(settings, calendar)
  assert [float(noise(jnp.int32(step))) for step in (0, 669, 670, 899)] == pytest.approx(
    [0.1, 0.1, 0, 0]
  )
  settings.color_noise_epochs = 0.0
  assert float(make_color_noise(settings, calendar)(jnp.int32(899))) == pytest.approx(0.1)


# Normalization.


def test_normalizations(store):
  images = random_images(4, 40)
  pixel = store.mean_image.reshape(-1, 3).mean(0)
  central = images[:, 4:36, 4:36].astype(np.float64)
  vectors = store.color_eigenvectors
  covariance = vectors @ np.diag(store.color_stdevs**2) @ vectors.T
  expected = {
    'mean_image': central - store.mean_image[4:36, 4:36],
    'mean_pixel': central - pixel,
    'mean_scalar': central - pixel.mean(),
    'standardize': (central - pixel) / np.sqrt(np.diag(covariance)),
    'torchvision': (central / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    'none': central,
  }
  for kind, views in expected.items():
    prepare = make_preprocessing(config_of(normalization=kind, scale=0.25), store)
    (found,) = fixed_views(prepare, images, VIEWS[1])
    np.testing.assert_allclose(found, 0.25 * views, rtol=1e-4, atol=1e-4, err_msg=kind)


# Test views.


def test_ten_views_are_the_corners_and_the_center_and_their_mirrors():
  images = random_images(3, 256)
  found = fixed_views(preprocessing(224), images, VIEWS[10])
  offsets = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]  # CHM convdata.py
  straight = [images[:, r : r + 224, c : c + 224] for r, c in offsets]
  expected = straight + [view[:, :, ::-1] for view in straight]
  np.testing.assert_array_equal(found, expected)


def test_nine_views_are_a_grid_without_mirrors():
  images = random_images(3, 32)
  found = fixed_views(preprocessing(24), images, VIEWS[9])
  expected = [images[:, r : r + 24, c : c + 24] for r in (0, 4, 8) for c in (0, 4, 8)]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  'side, crop, start', [(256, 224, 16), (256, 227, 14), (32, 28, 2), (7, 7, 0)]
)
def test_one_view_is_the_center(side, crop, start):
  images = random_images(2, side)
  (view,) = fixed_views(preprocessing(crop), images, VIEWS[1])
  np.testing.assert_array_equal(view, images[:, start : start + crop, start : start + crop])


# Keys.


def test_every_example_of_every_step_has_a_key_of_its_own():
  make = jax.jit(example_keys, static_argnums=0)
  data = {
    (seed, step): np.asarray(jax.random.key_data(make(seed, step, jnp.arange(128))))
    for seed in (0, 1)
    for step in range(20)
  }
  assert len(np.unique(np.concatenate(list(data.values())), axis=0)) == 2 * 20 * 128
  alone = jax.random.key_data(example_keys(1, 7, jnp.array([90])))  # whatever else is asked for
  np.testing.assert_array_equal(alone[0], data[1, 7][90])


# Enlargement.


def test_resize_to_enlarges_bilinearly_and_the_mean_with_the_images(store):
  torch = pytest.importorskip('torch')

  def enlarged(images, side):
    maps = torch.tensor(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    found = torch.nn.functional.interpolate(maps, (side, side), mode='bilinear')
    return found.numpy().transpose(0, 2, 3, 1)

  images = random_images(2, 40)
  prepare = make_preprocessing(
    config_of(resize_to=100, crop=64, random_crop=False, random_flip=False), store
  )
  large, mean = enlarged(images, 100), enlarged(store.mean_image[None], 100)[0]
  expected = (large - mean)[:, 18:82, 18:82]
  np.testing.assert_allclose(training_views(prepare, images, keys_of(2)), expected, atol=1e-2)
  (corner,) = fixed_views(prepare, images, [(1, 0, 1)])
  np.testing.assert_allclose(corner, large[:, 36:, :64][:, :, ::-1] - mean[18:82, 18:82], atol=1e-2)
