"""The images of a split as raw pixels: one preallocated `images.npy`, in which a part is a range of
rows. Read a batch at a time, it feeds faster than anything that has to be decoded.
"""

import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from alexnet_jax.data.examples import Part, Record

IMAGES = 'images.npy'


class RawImages:
  """Writes, checks and opens the images of the split in `folder`, each uint8 (size, size, 3)."""

  def __init__(self, folder: pathlib.Path, size: int):
    self._folder = folder
    self._size = size
    self._row_bytes = size**2 * 3

  @property
  def _unfinished(self) -> pathlib.Path:
    return self._folder / f'{IMAGES}.tmp'

  def bytes_for(self, rows: int) -> int:
    """Bytes of `rows` images on disk."""
    return rows * self._row_bytes

  def set_rows(self, rows: int) -> None:
    """Makes the file one of so many rows, or cuts it to so many."""
    shape = (rows, self._size, self._size, 3)
    with open(self._unfinished, 'r+b' if self._unfinished.exists() else 'w+b') as stream:
      np.lib.format.write_array_header_1_0(
        stream, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
      )
      stream.truncate(stream.tell() + self.bytes_for(rows))
      stream.flush()
      os.fsync(stream.fileno())

  def write(self, part: Part, blocks: Iterable[np.ndarray]) -> Record:
    """Writes the images of a part, blocks of uint8 (n, S, S, 3); returns their checksum."""
    checksum = 0
    with open(self._unfinished, 'r+b') as file:
      np.lib.format.read_magic(file)
      np.lib.format.read_array_header_1_0(file)
      file.seek(part.start * self._row_bytes, os.SEEK_CUR)
      for block in blocks:
        file.write(block)
        checksum = zlib.crc32(block, checksum)
      file.flush()
      os.fsync(file.fileno())
    return {'checksum': np.uint32(checksum)}

  def merge(
    self, parts: list[Part], records: list[Record], rows: int, moves: list[tuple[int, int]]
  ) -> dict[str, Any]:
    """Replaces rows that are left out.

    Args:
      parts: all parts.
      records: what `write` returned for each.
      rows: the first so many rows remain.
      moves: (row left out, later row that takes its place).

    Returns:
      {file name: checksums of its parts}.
    """
    kept = [part for part in parts if part.start < rows]
    checksums = [int(record['checksum']) for record in records[: len(kept)]]
    if rows < parts[-1].stop:
      images = np.lib.format.open_memmap(self._unfinished, mode='r+')
      for hole, filler in moves:
        images[hole] = images[filler]
      images.flush()
      holes = {hole for hole, _ in moves}
      for part in kept:
        if part is kept[-1] or not holes.isdisjoint(range(part.start, part.stop)):
          checksums[part.number] = zlib.crc32(images[part.start : min(rows, part.stop)])
    return {IMAGES: checksums}

  def publish(self, rows: int) -> None:
    """Cuts the file to `rows` and renames it, unless that has been done."""
    if self._unfinished.exists():
      self.set_rows(rows)
      self._unfinished.rename(self._folder / IMAGES)

  def open(self, rows: int, checksums: dict[str, Any]) -> dict[str, Any]:
    """Fields of `store.Split`.

    Raises:
      ValueError, OSError: the file is absent, cut short, or of another shape.
    """
    del checksums  # pixels are checked only when asked for
    file = self._folder / IMAGES
    pixels = np.load(file, mmap_mode='r', allow_pickle=False)
    if pixels.shape != (rows, self._size, self._size, 3) or pixels.dtype != np.uint8:
      raise ValueError(f'{self._folder.name}/{IMAGES} is {pixels.dtype} {pixels.shape}')
    return {'images': pixels, 'file': file, 'offset': pixels.offset}

  def check(self, checksums: dict[str, Any], rows_per_part: int) -> Iterator[str | None]:
    """Yields for each part None, or what differs from `checksums`."""
    images = np.load(self._folder / IMAGES, mmap_mode='r', allow_pickle=False)
    for number, expected in enumerate(checksums[IMAGES]):
      rows = images[number * rows_per_part : (number + 1) * rows_per_part]
      first = number * rows_per_part
      same = zlib.crc32(rows) == expected
      yield None if same else f'{IMAGES} rows {first}..{first + len(rows) - 1}'
