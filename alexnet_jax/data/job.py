"""Writes a store in parts, which any process can write in any order, and again.

A part is a range of a split's rows. Its images are written (see `stored_images`) and synced, then a
small record of it is published by a rename: labels, sums, checksum, unreadable images. Parts that
have a record are never written again.

Records are merged in order and their sums are integers, so the result is the same to the byte
whoever did which part. Each step can be interrupted and repeated: nothing is cut off or removed
before meta.json, which describes the job from its beginning, has the counts that commit the store.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import PIL

from alexnet_jax import files
from alexnet_jax.data import images, order, store
from alexnet_jax.data.examples import Part, Source
from alexnet_jax.data.statistics import Sums
from alexnet_jax.data.stored_images import save_array
from alexnet_jax.errors import UserError

# The order of rows belongs to the data, not to a run: it never follows a configuration's seed.
ORDER_SEED = 2012
_JPEG_COMPRESSION = 5  # at least; 6 at quality 95, more at lower ones
_NAMED_IN_MESSAGE = 5


@dataclasses.dataclass(frozen=True)
class Job:
  """Writes `source` to a store; picklable.

  Attributes: as the arguments of `writer.write_store`, and
    folder: holds everything until the store is complete.
  """

  source: Source
  folder: pathlib.Path
  image_size: int
  resize: str
  rows_per_part: int
  encoding: str = store.RAW

  @functools.cached_property
  def indices(self) -> dict[str, np.ndarray]:
    """For each split, which example of the source a row shows: int64 (N,)."""
    return {
      'train': order.permutation(ORDER_SEED, 0, len(self.source.train)),
      'eval': np.arange(len(self.source.eval)),
    }

  @functools.cached_property
  def description(self) -> dict[str, Any]:
    """What the store is made from, and how: only an equal job can continue this one."""
    made_from = store.made_from(self.source, self.image_size, self.resize, self.encoding)
    return made_from | {'rows_per_part': self.rows_per_part}

  def parts(self, split: str) -> list[Part]:
    n, size = len(self.indices[split]), self.rows_per_part
    return [
      Part(split, number, start, min(n, start + size))
      for number, start in enumerate(range(0, n, size))
    ]

  def begin(self) -> list[Part]:
    """Makes the folder, unless an interrupted run of the same job did.

    Returns:
      The parts that have no record yet.

    Raises:
      UserError: the disk is too small.
    """
    self._check_disk_space()
    if not self._meta():
      shutil.rmtree(self.folder, ignore_errors=True)
      for name in ('parts', *store.SPLITS):
        (self.folder / name).mkdir(parents=True)
      files.write_json(self.folder / 'meta.json', self.description)
    parts = [part for split in store.SPLITS for part in self.parts(split)]
    return [part for part in parts if not self._record_file(part).exists()]

  def is_committed(self) -> bool:
    """Whether the folder holds the whole store."""
    return 'counts' in self._meta()

  def read_row(self, split: str, row: int) -> tuple[np.ndarray, int]:
    """One example as the store holds it: uint8 (S, S, 3) and the label.

    Raises:
      images.UnreadableImage: the image cannot be read; the message names it.
      UserError: its label is no class.
    """
    index, classes = int(self.indices[split][row]), len(self.source.classes)
    try:
      example = getattr(self.source, split)[index]
    except OSError as error:
      raise images.UnreadableImage(f'example {index}: {error}') from error
    if not 0 <= example.label < classes:
      raise UserError(
        f'{example.name} has label {example.label}, allowed are 0..{classes - 1}: choose a labeled '
        'split, or correct the data'
      )
    upright = self.description['orientation'] == store.EXIF
    try:
      return images.read_image(example.data, self.image_size, self.resize, upright), example.label
    except images.UnreadableImage as error:
      raise images.UnreadableImage(f'{example.name}: {error}') from error

  def write_part(self, part: Part, advance: Callable[[int], object]) -> None:
    """Writes rows, unreadable ones black, then their record; calls `advance(1)` after each row."""
    sums, reasons = Sums(self.image_size), {}
    labels = np.zeros(len(part), np.int32)

    def pixels() -> Iterator[np.ndarray]:
      for row in range(part.start, part.stop):
        try:
          image, labels[row - part.start] = self.read_row(part.split, row)
          sums.add_image(image)
        except images.UnreadableImage as error:
          image, reasons[row] = np.zeros_like(sums.pixels, np.uint8), str(error)
        yield image
        advance(1)

    written = self._image_files(part.split).write(part, pixels())
    with files.replacing(self._record_file(part)) as file:
      np.savez(
        file,
        **written,
        labels=labels,
        count=np.int64(sums.count),
        pixels=sums.pixels.astype(np.uint32),
        products=sums.products,
        bad_rows=np.array(list(reasons), np.int64),
        reasons=np.array(list(reasons.values()), np.str_),
      )

  def commit(self, unreadable: str) -> None:
    """Writes labels, statistics and meta.json from the records of all parts.

    Args:
      unreadable: 'error' or 'skip'. A row that is left out is taken by the last row of its split,
        so no other one moves.

    Raises:
      UserError: unreadable images that are not to be skipped, or a class or split without any
        readable image.
    """
    records = {split: [self._record(part) for part in self.parts(split)] for split in store.SPLITS}
    bad: dict[str, dict[int, str]] = {split: {} for split in store.SPLITS}
    for split, found in records.items():
      for record in found:
        bad[split] |= zip(record['bad_rows'].tolist(), record['reasons'].tolist(), strict=True)
    if unreadable == 'error' and any(bad.values()):
      raise self._unreadable_error(bad)
    sums, checksums = Sums(self.image_size), dict[str, Any]()
    for split in store.SPLITS:
      self._check_classes(split, bad[split])
      checksums |= self._merge_rows(split, records[split], bad[split])
    for record in records['train']:
      sums.count += int(record['count'])
      sums.pixels += record['pixels']
      sums.products += record['products']
    stdevs, eigenvectors = sums.color_components()
    checksums['mean.npy'] = save_array(self.folder / 'mean.npy', sums.mean_image())
    meta = self.description | {
      'class_names': list(self.source.class_names),
      'counts': {split: len(self.indices[split]) - len(bad[split]) for split in store.SPLITS},
      'crc32': checksums,
      'color_stdevs': stdevs.tolist(),
      'color_eigenvectors': eigenvectors.tolist(),
      'unreadable': {split: list(reasons.values()) for split, reasons in bad.items()},
      'versions': {'numpy': np.__version__, 'pillow': PIL.__version__},
    }
    files.write_json(self.folder / 'meta.json', meta)

  def publish(self, path: pathlib.Path) -> None:
    """Moves the committed store to its place."""
    for split, count in self._meta()['counts'].items():
      self._image_files(split).finish(count)
    shutil.rmtree(self.folder / 'parts', ignore_errors=True)
    for left in self.folder.rglob('.*.tmp'):  # of writers that were killed
      left.unlink()
    self.folder.rename(path)

  def _image_files(self, split: str):
    return store.image_files(self.folder / split, self.image_size, self.encoding)

  def _record_file(self, part: Part) -> pathlib.Path:
    return self.folder / 'parts' / f'{part.split}-{part.number:05}.npz'

  def _record(self, part: Part) -> dict[str, Any]:
    with np.load(self._record_file(part), allow_pickle=False) as file:
      return dict(file)

  def _meta(self) -> dict[str, Any]:
    """What meta.json says in the folder; nothing if it is not of this job."""
    try:
      found = json.loads((self.folder / 'meta.json').read_text())
    except (OSError, ValueError):
      return {}
    return found if self.description.items() <= found.items() else {}

  def _check_disk_space(self) -> None:
    """Raises UserError unless what remains to be written fits the disk."""
    image = self.image_size**2 * 3
    stored = image if self.encoding == store.RAW else image // _JPEG_COMPRESSION
    sums = sum(len(self.parts(split)) for split in store.SPLITS) * image * 4
    written = sum(file.stat().st_blocks * 512 for file in self.folder.rglob('*'))
    needed = sum(map(len, self.indices.values())) * stored + sums - written
    free = shutil.disk_usage(self.folder.parent).free
    if needed > free:
      raise UserError(
        f'{self.folder.parent} has {free:,} bytes free, the store needs {needed:,} more: free '
        'some, set --config.data.store to another disk, or try --config.data.encoding=jpeg'
      )

  def _unreadable_error(self, bad: dict[str, dict[int, str]]) -> UserError:
    """The error that lists unreadable images, which a rerun reads again: they may be repaired."""
    for split, reasons in bad.items():
      for part in self.parts(split):
        if not reasons.keys().isdisjoint(range(part.start, part.stop)):
          self._record_file(part).unlink()
    lines = [reason for reasons in bad.values() for reason in reasons.values()]
    listing = self.folder.with_suffix('.unreadable.txt')
    listing.write_text('\n'.join(lines) + '\n', errors='surrogateescape')
    named = '; '.join(lines[:_NAMED_IN_MESSAGE])
    more = f' and {len(lines) - _NAMED_IN_MESSAGE} more' if len(lines) > _NAMED_IN_MESSAGE else ''
    return UserError(
      f'{len(lines)} unreadable image(s), listed in {listing}: {named}{more}. Repair them, or leave'
      ' them out with --config.data.unreadable=skip; finished parts are kept'
    )

  def _check_classes(self, split: str, bad: Container[int]) -> None:
    """Raises UserError if `bad` rows are all of the split, or of a class of a folder."""
    indices = self.indices[split].tolist()
    left = [index for row, index in enumerate(indices) if row not in bad]
    if not left:
      raise UserError(f'{self.source.name} has no readable image to make its {split} split from')
    labels = getattr(getattr(self.source, split), 'labels', ())
    for label in sorted(set(labels) - {labels[index] for index in left if labels}):
      raise UserError(
        f'none of the {labels.count(label):,} {split} images of class'
        f' {self.source.classes[label]!r} can be read, and data.unreadable=skip would leave the'
        ' class out: repair one, or remove its folder'
      )

  def _merge_rows(self, split: str, records: list[dict], bad: dict[int, str]) -> dict[str, Any]:
    """Fills the holes that `bad` rows leave, writes labels and indices; returns checksums."""
    labels = np.concatenate([record['labels'] for record in records])
    indices = self.indices[split].copy()
    count = len(labels) - len(bad)
    holes = [row for row in bad if row < count]
    fillers = [row for row in range(count, len(labels)) if row not in bad]
    labels[holes], indices[holes] = labels[fillers], indices[fillers]
    moves = list(zip(holes, fillers, strict=True))
    checksums = self._image_files(split).merge(self.parts(split), records, count, moves)
    folder = self.folder / split
    checksums['labels.npy'] = save_array(folder / 'labels.npy', labels[:count])
    save_array(folder / 'source_index.npy', indices[:count])
    return {f'{split}/{name}': value for name, value in checksums.items()}


def in_memory_store(source: Source, *, image_size: int, resize: str) -> store.Store:
  """The store of a small source, never written to disk; arguments as of `writer.write_store`."""
  job, sums, splits = Job(source, pathlib.Path(), image_size, resize, 0), Sums(image_size), {}
  for name, indices in job.indices.items():
    rows = [job.read_row(name, row) for row in range(len(indices))]
    pixels, labels = (list(column) for column in zip(*rows, strict=True))
    splits[name] = store.Split(np.stack(pixels), np.array(labels, np.int32))
  for image in np.asarray(splits['train'].images):
    sums.add_image(image)
  return store.Store(
    None,
    source.classes,
    splits['train'],
    splits['eval'],
    sums.mean_image(),
    *sums.color_components(),
    meta=store.made_from(source, image_size, resize),
  )
