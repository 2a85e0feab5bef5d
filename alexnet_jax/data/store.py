"""The prepared store: all images decoded and resized, ready to be gathered a batch at a time.

On disk:

    meta.json                classes, counts, resize rule, checksums, RGB components
    mean.npy                 float32 (S, S, 3), mean image of the training split
    {train,eval}/images.npy  uint8 (N, S, S, 3) RGB; or JPEG files, see `jpeg_images`
    {train,eval}/labels.npy  int32 (N,)
    {train,eval}/source_index.npy  int64 (N,), which example of the source a row shows

Training rows are in a fixed random order, so that the first n of them are a random subset. The
statistics are those of the full training split, before JPEG compression.
"""

import dataclasses
import json
import pathlib
import zlib
from typing import Any

import numpy as np

from alexnet_jax.data import imagenet, images, order, statistics
from alexnet_jax.data.examples import Source, SourceSplit
from alexnet_jax.data.jpeg_images import JpegImages, JpegRows
from alexnet_jax.data.raw_images import RawImages
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

FORMAT_VERSION = 1
SPLITS = ('train', 'eval')
EXIF, STORED = 'exif', 'as stored'  # how images were turned
RAW, JPEG = 'raw', 'jpeg '  # how images are stored; the latter is followed by the quality
# The order of rows belongs to the data, not to a run: it never follows a configuration's seed.
ORDER_SEED = 2012


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Rows of images and labels.

  Attributes:
    images: uint8 (N, S, S, 3) RGB: an array, a read-only memory map, or rows of JPEG files.
    labels: int32 (N,).
    file: the file the images lie in, one after another from byte `offset`; None when in memory or
      JPEG.
    offset: see `file`.
  """

  images: np.ndarray | JpegRows
  labels: np.ndarray
  file: pathlib.Path | None = None
  offset: int = 0

  def __len__(self) -> int:
    return len(self.labels)

  def first(self, n: int) -> 'Split':
    """The first `n` rows, of a training split a random subset."""
    return dataclasses.replace(self, images=self.images[:n], labels=self.labels[:n])


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """A prepared data set.

  Attributes:
    path: its folder, or None when in memory.
    classes: class names; a label is an index into it.
    train: rows to learn from.
    eval: held-out rows.
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
    for name in ('mean.npy', *(f'{split}/labels.npy' for split in SPLITS)):
      if zlib.crc32((path / name).read_bytes()) != meta['crc32'][name]:
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
  return Split(labels=labels, **files.open(count, _checksums(meta, name)))


def image_files(folder: pathlib.Path, image_size: int, encoding: str) -> RawImages | JpegImages:
  """Reader and writer of a split's images; `encoding` is 'raw', or 'jpeg 90' for quality 90."""
  if encoding == RAW:
    return RawImages(folder, image_size)
  return JpegImages(folder, image_size, int(encoding.removeprefix(JPEG)))


def _checksums(meta: dict[str, Any], split: str) -> dict[str, Any]:
  """Checksums of the files of one split, by name."""
  prefix = f'{split}/'
  return {
    name.removeprefix(prefix): value
    for name, value in meta['crc32'].items()
    if name.startswith(prefix)
  }


def verify_store(path: pathlib.Path | str, progress: Console | None = None) -> None:
  """Reads every byte of a store and compares it with the checksums taken when it was written.

  Raises:
    UserError: names each part that has changed.
  """
  meta = open_store(path).meta
  changed = []
  parts = sum(len(value) for value in meta['crc32'].values() if isinstance(value, list))
  with (progress or Console(quiet=True)).count(f'verifying parts of {path}', parts) as advance:
    for name in SPLITS:
      files = image_files(pathlib.Path(path) / name, meta['image_size'], meta['encoding'])
      for change in files.check(_checksums(meta, name), meta['rows_per_part']):
        changed += [f'{name}/{change}'] if change else []
        advance(1)
  if changed:
    raise UserError(
      f'the store {path} has changed since it was written: {", ".join(changed)}; '
      'delete it and prepare it again'
    )


def in_memory_store(source: Source, *, image_size: int, resize: str) -> Store:
  """The store of a small source, never written to disk; arguments as of `writer.write_store`."""
  arrays, upright = {}, is_upright(source.classes)
  for name, indices in row_order(source).items():
    pixels = np.empty((len(indices), image_size, image_size, 3), np.uint8)
    labels = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
      pixels[row], labels[row] = read_row(
        getattr(source, name), int(index), len(source.classes), image_size, resize, upright
      )
    arrays[name] = pixels, labels
  totals = statistics.sums(arrays['train'][0])
  stdevs, eigenvectors = statistics.color_components(totals)
  meta = describe(source, image_size, resize) | {
    'class_names': [],
    'counts': {name: len(labels) for name, (_, labels) in arrays.items()},
  }
  return Store(
    None,
    source.classes,
    Split(*arrays['train']),
    Split(*arrays['eval']),
    statistics.mean_image(totals),
    stdevs,
    eigenvectors,
    meta,
  )


def describe(source: Source, image_size: int, resize: str, encoding: str = RAW) -> dict[str, Any]:
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


def check_same(found: Store, expected: dict[str, Any]) -> None:
  """Raises UserError unless the store's meta.json has all of `expected` (see `describe`)."""
  for key, value in expected.items():
    if found.meta[key] != value:
      raise UserError(
        f'the store {found.path} has {key} {str(found.meta[key])[:200]}, this configuration wants '
        f'{str(value)[:200]}: set --config.data.store to another place, or delete the store'
      )


def row_order(source: Source) -> dict[str, np.ndarray]:
  """For each split, which example of the source a row shows: int64 (N,)."""
  return {
    'train': order.permutation(ORDER_SEED, 0, len(source.train)),
    'eval': np.arange(len(source.eval)),
  }


def read_row(
  split: SourceSplit, index: int, classes: int, image_size: int, resize: str, upright: bool
) -> tuple[np.ndarray, int]:
  """One example as the store holds it: uint8 (S, S, 3) and the label.

  Raises:
    images.UnreadableImage: the image cannot be read; the message names it.
    UserError: its label is no class.
  """
  try:
    example = split[index]
  except OSError as error:
    raise images.UnreadableImage(f'example {index}: {error}') from error
  if not 0 <= example.label < classes:
    raise UserError(
      f'{example.name} has label {example.label}, allowed are 0..{classes - 1}: choose a labeled '
      'split, or correct the data'
    )
  try:
    return images.square(example.data, image_size, resize, upright), example.label
  except images.UnreadableImage as error:
    raise images.UnreadableImage(f'{example.name}: {error}') from error
