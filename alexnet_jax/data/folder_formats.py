"""Tells by its content how a folder or file of `data.source=folder` holds its images."""

import os
import pathlib
from collections.abc import Callable

from alexnet_jax.data import image_folder, imagenet
from alexnet_jax.data.examples import Source
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.listing import TABLE
from alexnet_jax.errors import UserError

PARQUET, TAR, ZIP = '.parquet', '.tar', '.zip'
COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
_DEPTH = 4  # folders in folders that are searched for packed files


def open_images(
  root: pathlib.Path,
  validation_fraction: float,
  advance: Callable[[int], object] = lambda n: None,
) -> Source:
  """Opens images in folders of their classes, or packed in one of the formats known.

  Args:
    root: a folder or a file.
    validation_fraction: part of each class to hold out where there are no validation images.
    advance: is called with the number of images that have just been listed.

  Raises:
    AbsentData: there is nothing.
    UserError: it is damaged, or cannot be understood.
  """
  kind = _packed_kind(root)
  if kind == PARQUET:
    from alexnet_jax.data import parquet

    return parquet.open_parquet(root, _files(root, kind), validation_fraction, advance)
  if kind == TAR:
    from alexnet_jax.data import shards

    return shards.open_shards(root, _files(root, kind), validation_fraction, advance)
  if kind == ZIP:
    from alexnet_jax.data import zip_files

    return zip_files.open_zips(root, _files(root, kind), validation_fraction)
  if kind in COMPRESSED:
    raise UserError(
      f'{_files(root, kind)[0]} is compressed, so that no image can be found in it: unpack it to a'
      ' .tar file first, for instance with gunzip'
    )
  if root.is_file() and root.suffix.lower() == TABLE:
    return image_folder.open_folder(root.parent, validation_fraction, root.name, advance)
  return image_folder.open_folder(root, validation_fraction, '', advance)


def stamp(root: pathlib.Path) -> str:
  """What differs if packed files do, without a look into them; '' of images that are not packed.

  That is path, bytes and time of change of each, and of texts beside them.
  """
  kind = _packed_kind(root)
  files = [*_files(root, kind), *sorted(root.glob('*.txt'))] if kind else []
  lines = [(os.path.relpath(file, root), file.stat()) for file in files]
  return '\n'.join(f'{name} {found.st_size} {found.st_mtime_ns}' for name, found in lines)


def _packed_kind(root: pathlib.Path) -> str:
  """The extension of packed files, '' if the first thing found are images, of zips if any are."""
  if root.is_file() or imagenet.kaggle_images(root):
    return _kind(root.name)
  folders, found = [os.fspath(root)], ''
  for _ in range(_DEPTH):
    inner = []
    for folder in folders:
      try:
        entries = list(os.scandir(folder))
      except OSError:  # the reader of folders says so
        return ''
      for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name.startswith('.'):
          continue
        if entry.name.lower().endswith(EXTENSIONS):
          return ''
        if (kind := _kind(entry.name)) == ZIP:
          found = kind  # what images were unpacked from may lie beside them
        elif kind:
          return kind
        if entry.is_dir():
          inner.append(entry.path)
    folders = inner
  return found


def _kind(name: str) -> str:
  kinds = (PARQUET, TAR, ZIP, *COMPRESSED)
  return next((kind for kind in kinds if name.lower().endswith(kind)), '')


def _files(root: pathlib.Path, kind: str) -> list[pathlib.Path]:
  if root.is_file():
    return [root]
  found = [
    pathlib.Path(folder, name)
    for folder, _, names in os.walk(root, followlinks=True)
    for name in names
    if name.lower().endswith(kind) and not name.startswith('.')
  ]
  return sorted(found)
