"""The prepared store: all images decoded and resized, ready to be gathered a batch at a time.

On disk:

    meta.json                classes, counts, resize rule, checksums, RGB components
    mean.npy                 float32 (S, S, 3), mean image of the training split
    {train,eval}/images.npy  uint8 (N, S, S, 3) RGB; or JPEG files, see `stored_images`
    {train,eval}/labels.npy  int32 (N,)
    {train,eval}/source_index.npy  int64 (N,), which example of the source a row shows
    source_files.txt         of packed images: sizes and times of their files when last compared

Training rows are in a fixed random order, so that the first n of them are a random subset. The
statistics are those of the full training split, before JPEG compression.
"""

import dataclasses
import json
import pathlib
import zlib
from typing import Any

import numpy as np

from alexnet_jax.data import imagenet
from alexnet_jax.data.examples import Source
from alexnet_jax.data.stored_images import JpegImages, RawImages
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

FORMAT_VERSION = 1
SPLITS = ('train', 'eval')
EXIF, STORED = 'exif', 'as stored'  # how images were turned
RAW, JPEG = 'raw', 'jpeg '  # how images are stored; the latter is followed by the quality


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Rows of images and labels.

  Attributes:
    images: uint8 (N, S, S, 3) RGB: an array, a read-only memory map from its first row on, or rows
      of JPEG files.
    labels: int32 (N,).
  """

  images: np.ndarray | JpegImages
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def first(self, n: int) -> 'Split':
    """The first `n` rows, of a training split a random subset."""
    return Split(self.images[:n], self.labels[:n])


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """A prepared data set.

  Attributes:
    path: its folder, or None when in memory.
    classes: class names; a label is an index into it.
    train: rows to learn from.
    eval: validation rows.
    mean_image: float32 (S, S, 3), 0..255, over the training split.
    color_stdevs: float64 (3,), ascending, in gray levels.
    color_eigenvectors: float64 (3, 3), a column for each of `color_stdevs`.
    meta: what meta.json says.
  """

  path: pathlib.Path | None
  classes: tuple[str, ...]
  train: Split
  eval: Split
  mean_image: np.ndarray
  color_stdevs: np.ndarray
  color_eigenvectors: np.ndarray
  meta: dict[str, Any]

  @property
  def upright(self) -> bool:
    """Whether images were turned as their EXIF orientation says."""
    return self.meta.get('orientation') == EXIF

  @property
  def class_names(self) -> tuple[str, ...]:
    """What to call the classes before people: words where the data gave some, else `classes`."""
    return tuple(self.meta.get('class_names', ())) or self.classes


def open_store(path: pathlib.Path | str) -> Store:
  """Opens the store in a folder without reading its images.

  Raises:
    UserError: missing, of another version, or damaged (sizes, labels, mean image; `verify_store`
      checks the images too).
  """
  path = pathlib.Path(path)
  if not (path / 'meta.json').is_file():
    raise UserError(
      f'{path} is not a prepared store (no meta.json): make one with python -m alexnet_jax.prepare '
      'and --config.data.store=FOLDER, a folder that does not exist yet'
    )
  try:
    meta = json.loads((path / 'meta.json').read_text())
    if meta['format_version'] != FORMAT_VERSION:
      raise UserError(
        f'{path} has store format {meta["format_version"]}, this program reads {FORMAT_VERSION}: '
        'delete it and prepare it again, or set --config.data.store to another place'
      )
    for name, expected in meta['crc32'].items():
      if isinstance(expected, int) and zlib.crc32((path / name).read_bytes()) != expected:
        raise ValueError(f'{name} has changed')
    return Store(
      path=path,
      classes=tuple(meta['classes']),
      train=_open_split(path, 'train', meta),
      eval=_open_split(path, 'eval', meta),
      mean_image=np.load(path / 'mean.npy', allow_pickle=False),
      color_stdevs=np.array(meta['color_stdevs']),
      color_eigenvectors=np.array(meta['color_eigenvectors']),
      meta=meta,
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'the store {path} is damaged ({" ".join(str(error).split())}): delete it and prepare again'
    ) from error


def _open_split(path: pathlib.Path, name: str, meta: dict[str, Any]) -> Split:
  count = meta['counts'][name]
  labels = np.load(path / name / 'labels.npy', allow_pickle=False)
  if labels.shape != (count,):
    raise ValueError(f'{name}/labels.npy is {labels.shape}')
  files = image_files(path / name, meta['image_size'], meta['encoding'])
  return Split(files.open(count), labels)


def image_files(folder: pathlib.Path, image_size: int, encoding: str) -> RawImages | JpegImages:
  """Reader and writer of a split's images; `encoding` is 'raw', or 'jpeg 90' for quality 90."""
  if encoding == RAW:
    return RawImages(folder, image_size)
  return JpegImages(folder, image_size, int(encoding.removeprefix(JPEG)))


def verify_store(path: pathlib.Path | str, progress: Console | None = None) -> None:
  """Reads every byte of a store and compares it with the checksums taken when it was written.

  Raises:
    UserError: names each part that has changed.
  """
  meta = open_store(path).meta
  expected = {name: values for name, values in meta['crc32'].items() if isinstance(values, list)}
  changed = []
  total = sum(map(len, expected.values()))
  with (progress or Console(quiet=True)).count(f'verifying parts of {path}', total) as advance:
    for name, checksums in expected.items():
      split = name.split('/')[0]
      files = image_files(pathlib.Path(path) / split, meta['image_size'], meta['encoding'])
      parts = files.parts(meta['rows_per_part'])
      for (part, data), checksum in zip(parts, checksums, strict=True):
        changed += [f'{split}/{part}'] if zlib.crc32(data) != checksum else []
        advance(1)
  if changed:
    raise UserError(
      f'the store {path} has changed since it was written: {", ".join(changed)}; '
      'delete it and prepare it again'
    )


def made_from(source: Source, image_size: int, resize: str, encoding: str = RAW) -> dict[str, Any]:
  """What a store is made from; two stores agree if and only if these do."""
  return {
    'format_version': FORMAT_VERSION,
    'name': source.name,
    'fingerprint': source.fingerprint,
    'classes': list(source.classes),
    'image_size': image_size,
    'resize': resize,
    'encoding': encoding,
    'orientation': EXIF if is_upright(source.classes) else STORED,
  }


def is_upright(classes: tuple[str, ...]) -> bool:
  """Whether images of these classes are turned as their EXIF orientation says.

  Those of ImageNet, whose classes are WNIDs, keep the pixels that the nets of 2012 saw.
  """
  return not all(imagenet.WNID.fullmatch(name) for name in classes)


def check_made_from(found: Store, expected: dict[str, Any]) -> None:
  """Raises UserError unless the store's meta.json has all of `expected` (see `made_from`)."""
  if found.meta['name'] == expected.get('name') and (
    found.meta['fingerprint'] != expected['fingerprint']
  ):
    raise UserError(
      f'{expected["name"]} has changed since the store {found.path} was made of it, with'
      f' {len(found.train):,} training and {len(found.eval):,} validation images: delete the store'
      ' to prepare it again, or set --config.data.store to another place'
    )
  for key, value in expected.items():
    if found.meta[key] != value:
      raise UserError(
        f'the store {found.path} has {key} {str(found.meta[key])[:200]}, this configuration wants '
        f'{str(value)[:200]}: set --config.data.store to another place, or delete the store'
      )
