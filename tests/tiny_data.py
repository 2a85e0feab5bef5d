"""Small data sets for the tests of the data rooms."""

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

DATA_CONFIG = {
  'source': 'folder', 'name': '', 'dir': '', 'store': '', 'image_size': 16, 'resize': 'crop',
  'train_split': 'train', 'eval_split': 'test', 'validation_fraction': 0.25, 'unreadable': 'error',
  'num_classes': 0, 'train_examples': 0, 'synthetic_examples': 64,
}


def data_config(**changes):
  return ConfigDict(DATA_CONFIG | {key: str(value) if key in ('dir', 'store') else value
                                   for key, value in changes.items()})


def write_images(folder, count, *, seed=0, suffix='.png'):
  """Writes `count` random images of different sizes to a folder."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  for number in range(count):
    pixels = rng.integers(0, 256, (*rng.integers(16, 30, 2), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f'{number:03}{suffix}')


def write_folder(root, *, train=20, held_out=7, classes=('ant', 'bee', 'cat')):
  """Writes an image folder with train/ and validation/; returns it."""
  for seed, name in enumerate(classes):
    write_images(root / 'train' / name, train, seed=seed)
    write_images(root / 'validation' / name, held_out, seed=seed + 100)
  return root


TFDS_SCRIPT = """
import sys
import numpy as np
import tensorflow_datasets as tfds

name, directory = sys.argv[1:]
rng = np.random.default_rng(0)
def examples(n):
  return [(i, {'image': rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), 'label': i % 3})
          for i in range(n)]
tfds.dataset_builders.store_as_tfds_dataset(
  name=name, version='1.0.0', data_dir=directory, file_format='array_record',
  features=tfds.features.FeaturesDict({
    'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
    'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cat'])}),
  split_datasets={'train': examples(30), 'test': examples(9)})
"""
