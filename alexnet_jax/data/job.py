"""Writes a store in parts, which any process can write in any order, and again.

A part is a range of a split's rows. Its images are written (see `raw_images` and `jpeg_images`) and
synced, then a small record of it is published by a rename: labels, sums, checksum, unreadable
images. Parts that have a record are never written again.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import statistics, store
from alexnet_jax.data.examples import Part, Record, Source
from alexnet_jax.data.images import UnreadableImage
from alexnet_jax.data.jpeg_images import JpegImages
from alexnet_jax.data.raw_images import RawImages
from alexnet_jax.errors import UserError

ROWS_PER_WRITE = 64


@dataclasses.dataclass(frozen=True)
class Job:
  """Writes `source` to a store; picklable.

  Attributes:
    source: labeled images.
    folder: holds everything until the store is complete.
    image_size: S, side of the images in pixels.
    resize: 'crop' or 'warp'.
    rows_per_part: rows of a part.
    encoding: how images are stored: 'raw', or 'jpeg 90' for quality 90.
  """

  source: Source
  folder: pathlib.Path
  image_size: int
  resize: str
  rows_per_part: int
  encoding: str = store.RAW

  @functools.cached_property
  def indices(self) -> dict[str, np.ndarray]:
    """For each split, which example of the source a row shows."""
    return store.row_order(self.source)

  @functools.cached_property
  def upright(self) -> bool:
    """Whether images are turned as their EXIF orientation says."""
    return store.is_upright(self.source.classes)

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

  def images(self, split: str) -> RawImages | JpegImages:
    """The files of a split's images."""
    return store.image_files(self.folder / split, self.image_size, self.encoding)

  def record_file(self, part: Part) -> pathlib.Path:
    return self.folder / 'parts' / f'{part.split}-{part.number:05}.npz'

  def record(self, part: Part) -> Record:
    with np.load(self.record_file(part), allow_pickle=False) as file:
      return dict(file)

  def describe(self) -> dict[str, Any]:
    """What job.json says: only a job with the same description can continue this one."""
    description = store.describe(self.source, self.image_size, self.resize, self.encoding)
    return description | {'rows_per_part': self.rows_per_part}

  def is_described_by(self, name: str) -> bool:
    """Whether the JSON file `name` in the folder describes this job."""
    try:
      found = json.loads((self.folder / name).read_text())
    except (OSError, ValueError):
      return False
    return self.describe().items() <= found.items()

  def check_disk_space(self) -> None:
    """Raises UserError unless what remains to be written fits the disk."""
    images = sum(self.images(split).bytes_for(len(rows)) for split, rows in self.indices.items())
    records = sum(len(self.parts(split)) for split in store.SPLITS) * self.image_size**2 * 3 * 4
    written = sum(file.stat().st_blocks * 512 for file in self.folder.rglob('*'))
    needed, free = images + records - written, shutil.disk_usage(self.folder.parent).free
    if needed > free:
      raise UserError(
        f'{self.folder.parent} has {free:,} bytes free, the store needs {needed:,} more: free '
        'some, set --config.data.store to another disk, or try --config.data.encoding=jpeg'
      )

  def begin(self) -> None:
    """Makes the folder, unless an interrupted run of the same job did."""
    if self.is_described_by('job.json'):
      return
    shutil.rmtree(self.folder, ignore_errors=True)
    (self.folder / 'parts').mkdir(parents=True)
    for split, indices in self.indices.items():
      (self.folder / split).mkdir()
      self.images(split).set_rows(len(indices))
    files.write_json(self.folder / 'job.json', self.describe())

  def write_part(self, part: Part, advance: Callable[[int], object]) -> None:
    """Writes one range of rows, then its record. Unreadable rows are left black."""
    totals = statistics.sums(self.nothing)
    labels = np.zeros(len(part), np.int32)
    reasons: dict[int, str] = {}

    def blocks() -> Iterator[np.ndarray]:
      nonlocal totals
      for start in range(part.start, part.stop, ROWS_PER_WRITE):
        rows = range(start, min(part.stop, start + ROWS_PER_WRITE))
        block = np.zeros((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for place, row in enumerate(rows):
          try:
            block[place], labels[row - part.start] = self._read_row(part.split, row)
          except UnreadableImage as error:
            reasons[row] = str(error)
        yield block
        if part.split == 'train':
          totals += statistics.sums(block[[row not in reasons for row in rows]])
        advance(len(rows))

    written = self.images(part.split).write(part, blocks())
    with files.replacing(self.record_file(part)) as file:
      np.savez(
        file,
        **written,
        labels=labels,
        count=np.int64(totals.count),
        pixels=totals.pixels.astype(np.uint32),
        products=totals.products,
        bad_rows=np.array(list(reasons), np.int64),
        reasons=np.array(list(reasons.values()), np.str_),
      )

  def _read_row(self, split: str, row: int) -> tuple[np.ndarray, int]:
    return store.read_row(
      getattr(self.source, split),
      int(self.indices[split][row]),
      len(self.source.classes),
      self.image_size,
      self.resize,
      self.upright,
    )
