"""The writing of one store, in parts that can be done by any process in any order, or done again.

Each split has one preallocated image file. A part is a range of its rows: whoever does it writes
the rows in place, syncs, and publishes a small record (labels, sums, checksum, unreadable images)
by a rename. Parts that have a record are never redone.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from alexnet_jax.data import atomic, statistics, store
from alexnet_jax.data.images import UnreadableImage
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

ROWS_PER_WRITE = 64


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows `start` to `stop` of a split."""

  split: str
  number: int
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Job:
  """The writing of `source` to a store, in `folder`; picklable.

  Attributes:
    source: labelled images.
    folder: where everything is until the store is complete.
    image_size: S, side of the images in pixels.
    resize: 'crop' or 'warp'.
    rows_per_part: rows of a part.
  """

  source: Source
  folder: pathlib.Path
  image_size: int
  resize: str
  rows_per_part: int

  @functools.cached_property
  def indices(self) -> dict[str, np.ndarray]:
    """For each split, which example of the source a row shows."""
    return store.row_order(self.source)

  @property
  def row_bytes(self) -> int:
    return self.image_size**2 * 3

  @property
  def nothing(self) -> np.ndarray:
    """No images: uint8 (0, S, S, 3)."""
    return np.empty((0, self.image_size, self.image_size, 3), np.uint8)

  def parts(self, split: str) -> list[Part]:
    n, size = len(self.indices[split]), self.rows_per_part
    return [
      Part(split, number, start, min(n, start + size))
      for number, start in enumerate(range(0, n, size))
    ]

  def waiting(self) -> list[Part]:
    """Parts of all splits that have no record."""
    parts = [part for split in store.SPLITS for part in self.parts(split)]
    return [part for part in parts if not self.record_file(part).exists()]

  def images_file(self, split: str) -> pathlib.Path:
    return self.folder / split / 'images.npy.tmp'

  def record_file(self, part: Part) -> pathlib.Path:
    return self.folder / 'parts' / f'{part.split}-{part.number:05}.npz'

  def record(self, part: Part) -> dict[str, np.ndarray]:
    with np.load(self.record_file(part), allow_pickle=False) as file:
      return dict(file)

  def describe(self) -> dict[str, Any]:
    """What the job is; another one cannot go on where this one stopped."""
    description = store.describe(self.source, self.image_size, self.resize)
    return description | {'rows_per_part': self.rows_per_part}

  def is_described_by(self, name: str) -> bool:
    """Whether the JSON file `name` in the folder is of this very job."""
    try:
      found = json.loads((self.folder / name).read_text())
    except (OSError, ValueError):
      return False
    return self.describe().items() <= found.items()

  def check_room(self) -> None:
    """Raises UserError unless what remains to be written fits the disk."""
    rows = sum(len(indices) for indices in self.indices.values())
    records = sum(len(self.parts(split)) for split in store.SPLITS) * 4  # 4 bytes a pixel
    there = sum(file.stat().st_blocks * 512 for file in self.folder.rglob('*'))
    needed = (rows + records) * self.row_bytes - there
    free = shutil.disk_usage(self.folder.parent).free
    if needed > free:
      raise UserError(
        f'{self.folder.parent} has {free:,} bytes free, the store needs {needed:,} more: free '
        'some, or set --config.data.store to another disk'
      )

  def begin(self) -> None:
    """Preallocates the files, unless an interrupted run of the same job did."""
    if self.is_described_by('job.json'):
      return
    shutil.rmtree(self.folder, ignore_errors=True)
    (self.folder / 'parts').mkdir(parents=True)
    for split, indices in self.indices.items():
      (self.folder / split).mkdir()
      self.set_rows(split, len(indices))
    atomic.write_json(self.folder / 'job.json', self.describe())

  def set_rows(self, split: str, n: int) -> None:
    """Makes the image file one of `n` rows, keeping what it has."""
    shape = (n, self.image_size, self.image_size, 3)
    file = self.images_file(split)
    with open(file, 'r+b' if file.exists() else 'w+b') as stream:
      np.lib.format.write_array_header_1_0(
        stream, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
      )
      stream.truncate(stream.tell() + n * self.row_bytes)
      stream.flush()
      os.fsync(stream.fileno())

  def write_part(self, part: Part, advance: Callable[[int], object]) -> None:
    """Writes one range of rows, then its record. Unreadable rows are left black."""
    totals = statistics.sums(self.nothing)
    labels = np.zeros(len(part), np.int32)
    reasons: dict[int, str] = {}
    checksum = 0
    with open(self.images_file(part.split), 'r+b') as file:
      np.lib.format.read_magic(file)
      np.lib.format.read_array_header_1_0(file)
      file.seek(part.start * self.row_bytes, os.SEEK_CUR)
      for start in range(part.start, part.stop, ROWS_PER_WRITE):
        rows = range(start, min(part.stop, start + ROWS_PER_WRITE))
        block = np.zeros((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for place, row in enumerate(rows):
          try:
            block[place], labels[row - part.start] = self._read_row(part.split, row)
          except UnreadableImage as error:
            reasons[row] = str(error)
        file.write(block)
        checksum = zlib.crc32(block, checksum)
        if part.split == 'train':
          totals += statistics.sums(block[[row not in reasons for row in rows]])
        advance(len(rows))
      file.flush()
      os.fsync(file.fileno())
    atomic.write_npz(
      self.record_file(part),
      labels=labels,
      checksum=np.uint32(checksum),
      count=np.int64(totals.count),
      pixels=totals.pixels.astype(np.uint32),
      products=totals.products,
      bad_rows=np.array(list(reasons), np.int64),
      reasons=np.array(list(reasons.values()), np.str_),
    )

  def _read_row(self, split: str, row: int) -> tuple[np.ndarray, int]:
    return store.read_row(
      getattr(self.source, split), int(self.indices[split][row]), len(self.source.classes),
      self.image_size, self.resize,
    )
