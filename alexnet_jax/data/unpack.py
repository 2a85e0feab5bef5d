"""Copies images that can only be read in their order to files in which each can be found.

Rows of a store are in random order, which would read a packed file from its beginning for each.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from alexnet_jax import files
from alexnet_jax.data.examples import Source, SourceSplit
from alexnet_jax.data.packed import Pieces
from alexnet_jax.data.parquet import ParquetImages
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console


def unpack(source: Source, folder: pathlib.Path, progress: Console) -> Source:
  """Copies images that can only be read in their order to files in which each can be found.

  A file that is complete is not written again.

  Args:
    source: any data set.
    folder: where to write; emptied first if it holds images of another data set.

  Raises:
    UserError: the disk is too small, or a file cannot be read to its end.
  """
  streams = []
  for split in (source.train, source.eval):
    images = getattr(split, 'images', None)
    if isinstance(images, ParquetImages) and images not in streams:
      streams.append(images)
  if not streams:
    return source
  mark = folder / 'fingerprint'
  if not mark.is_file() or mark.read_text() != source.fingerprint:
    shutil.rmtree(folder, ignore_errors=True)
    files.write(mark, source.fingerprint)
  needed = sum(os.path.getsize(path) for images in streams for path in images.files)
  needed -= sum(file.stat().st_size for file in folder.iterdir())
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(
      f'{folder} has {free:,} bytes free, {needed:,} more are needed while the images of'
      f' {source.name} are unpacked: free some, or set --config.data.store to another disk'
    )
  total = sum(sum(images.counts) for images in streams)
  with progress.count(f'unpacking {source.name}', total) as advance:
    pieces = [
      _unpack(images, folder, f'{number}', advance) for number, images in enumerate(streams)
    ]

  def unpacked(split: SourceSplit) -> SourceSplit:
    number = streams.index(split.images)  # type: ignore[attr-defined]
    return dataclasses.replace(split, images=pieces[number])  # type: ignore[type-var]

  return dataclasses.replace(source, train=unpacked(source.train), eval=unpacked(source.eval))


def _unpack(
  images: ParquetImages, folder: pathlib.Path, name: str, advance: Callable[[int], object]
) -> Pieces:
  paths, sizes = [], []
  for number, count in enumerate(images.counts):
    path = folder / f'{name}-{number:05}'
    index = path.with_suffix('.npy')  # written last: the file is complete
    if index.is_file():
      advance(count)
    else:
      written = []
      with files.replacing(path) as file:
        for data in images.stream(number):
          file.write(data)
          written.append(len(data))
          advance(1)
      with files.replacing(index) as file:
        np.save(file, np.array(written, np.int64), allow_pickle=False)
    paths.append(str(path))
    sizes.append(np.load(index, allow_pickle=False))
  starts = [np.cumsum(lengths) - lengths for lengths in sizes]
  return Pieces(tuple(paths), images.files, tuple(starts), tuple(sizes))
