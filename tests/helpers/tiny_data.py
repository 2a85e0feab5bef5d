"""Small data sets for the tests of data/."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import config
from alexnet_jax.data.preparation import open_source
from alexnet_jax.errors import UserError


def data_config(**changes):
  """`config.data` of a small image folder, with changes."""
  data = config.default().data
  data.update(source='folder', name='', eval_split='test', image_size=16, validation_fraction=0.25)
  for key, value in changes.items():
    data[key] = str(value) if key in ('dir', 'store') else value
  return data


def refused(match, **changes):
  """That this is no data set is said in one line."""
  with pytest.raises(UserError, match=match) as caught:
    open_source(data_config(**changes))
  assert '\n' not in str(caught.value)


def write_images(folder, count, *, seed=0, suffix='.png'):
  """Writes `count` random images of different sizes to a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  for number in range(count):
    pixels = rng.integers(0, 256, (*rng.integers(16, 30, 2), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f'{number:03}{suffix}')


def write_photos(folder, count):
  """Writes `count` images of each of two classes that color tells apart; returns the folder."""
  random = np.random.default_rng(count)
  for name, color in (('blue', (60, 60, 200)), ('red', (200, 60, 60))):
    (folder / name).mkdir(parents=True)
    for i in range(count):
      pixels = np.clip(random.normal(color, 40, (40, 50, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{i}.png')
  return folder


def write_folder(root, *, train=20, held_out=7, classes=('ant', 'bee', 'cat')):
  """Writes an image folder with train/ and validation/; returns it."""
  for seed, name in enumerate(classes):
    write_images(root / 'train' / name, train, seed=seed)
    write_images(root / 'validation' / name, held_out, seed=seed + 100)
  return root


def pack(folder, target, kind):
  """Packs what `write_folder` wrote: two .parquet or .tar files a split, or a .zip for each."""
  target.mkdir()
  for split in ('train', 'validation'):
    images = sorted((folder / split).rglob('*.png'))
    for number, part in enumerate((images[::2], images[1::2])):
      rows = [(file.read_bytes(), file.parent.name) for file in part]
      path = target / f'{split}-{number}.{kind}'
      if kind == 'parquet':
        pyarrow = pytest.importorskip('pyarrow')
        parquet = pytest.importorskip('pyarrow.parquet')
        data, labels = zip(*rows, strict=True)
        table = {'image': [{'bytes': one, 'path': None} for one in data], 'label': labels}
        parquet.write_table(pyarrow.table(table), path, row_group_size=7)
      elif kind == 'tar':
        with tarfile.open(path, 'w') as tar:
          for row, (image, label) in enumerate(rows):
            add_to_archive(tar, f'{row:04}.png', image)
            add_to_archive(tar, f'{row:04}.cls', label.encode())
      else:
        with zipfile.ZipFile(target / f'{split}.zip', 'a', zipfile.ZIP_DEFLATED) as archive:
          for file in part:
            archive.write(file, file.relative_to(folder))


ARCHIVE_BYTES = {  # published, as in TFDS's checksums.tsv
  'ILSVRC2012_img_train.tar': 147_897_477_120,
  'ILSVRC2012_img_val.tar': 6_744_924_160,
}


def write_imagenet_archives(manual, train, validation):
  """Writes archives of true structure, and of true size: what follows the images is a hole.

  Args:
    manual: folder to make.
    train: {WNID: {file name: bytes}}; an archive of archives, one for each class.
    validation: images in the order of their numbers.
  """
  manual.mkdir(parents=True)
  with tarfile.open(manual / 'ILSVRC2012_img_train.tar', 'w') as outer:
    for wnid, files in train.items():
      memory = io.BytesIO()
      with tarfile.open(fileobj=memory, mode='w') as inner:
        for name, data in files.items():
          add_to_archive(inner, name, data)
      add_to_archive(outer, f'{wnid}.tar', memory.getvalue())
  with tarfile.open(manual / 'ILSVRC2012_img_val.tar', 'w') as tar:
    # Not in their order: TFDS says that those of the real archive are not.
    for number, data in sorted(enumerate(validation, 1), reverse=True):
      add_to_archive(tar, f'ILSVRC2012_val_{number:08}.JPEG', data)
  for name, size in ARCHIVE_BYTES.items():
    with open(manual / name, 'r+b') as file:
      file.truncate(size)


def add_to_archive(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def encoded(pixels, file_format='JPEG', mode='RGB'):
  """An image file's bytes."""
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, file_format)
  return file.getvalue()


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
