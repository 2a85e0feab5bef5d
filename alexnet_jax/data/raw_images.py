"""The images of a split as raw pixels: one `images.npy`, in which a part is a range of rows. Read a
batch at a time, it feeds faster than anything that has to be decoded.
"""

import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from alexnet_jax.data.examples import Part, Record

IMAGES = 'images.npy'
_HEADER_BYTES = 128  # of the .npy format 1.0, for any number of rows


class RawImages:
  """Writes and reads the images of the split in `folder`, each uint8 (size, size, 3)."""

  def __init__(self, folder: pathlib.Path, size: int):
    self._file = folder / IMAGES
    self._shape = (size, size, 3)
    self._row_bytes = size**2 * 3

  def write(self, part: Part, images: Iterable[np.ndarray]) -> Record:
    """Writes the images of a part, uint8 (S, S, 3) each; returns their checksum."""
    checksum = 0
    with open(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666), 'r+b') as file:
      file.seek(_HEADER_BYTES + part.start * self._row_bytes)
      for image in images:
        file.write(image)
        checksum = zlib.crc32(image, checksum)
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
      shape = (parts[-1].stop, *self._shape)
      images = np.memmap(self._file, np.uint8, 'r+', _HEADER_BYTES, shape)
      for hole, filler in moves:
        images[hole] = images[filler]
      images.flush()
      holes = {hole for hole, _ in moves}
      for part in kept:
        if part is kept[-1] or not holes.isdisjoint(range(part.start, part.stop)):
          checksums[part.number] = zlib.crc32(images[part.start : min(rows, part.stop)])
    return {IMAGES: checksums}

  def finish(self, rows: int) -> None:
    """Writes the header and cuts the file to `rows`, which may be done again."""
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (rows, *self._shape)}
    with open(self._file, 'r+b') as file:
      np.lib.format.write_array_header_1_0(file, header)
      file.truncate(file.tell() + rows * self._row_bytes)
      file.flush()
      os.fsync(file.fileno())

  def open(self, rows: int) -> np.memmap:
    """The images of `store.Split`.

    Raises:
      ValueError, OSError: the file is absent, cut short, or of another shape.
    """
    pixels = np.load(self._file, mmap_mode='r', allow_pickle=False)
    if pixels.shape != (rows, *self._shape) or pixels.dtype != np.uint8:
      raise ValueError(f'{self._file} is {pixels.dtype} {pixels.shape}')
    return pixels

  def parts(self, rows_per_part: int) -> Iterator[tuple[str, Any]]:
    """What to call each part, and its bytes."""
    images = np.load(self._file, mmap_mode='r', allow_pickle=False)
    for first in range(0, len(images), rows_per_part):
      rows = images[first : first + rows_per_part]
      yield f'{IMAGES} rows {first}..{first + len(rows) - 1}', rows
