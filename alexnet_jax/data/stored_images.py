"""The images of a split on disk, written in parts, each a range of rows.

Raw, they are one `images.npy`. Read a batch at a time, it feeds faster than anything that has to be
decoded.

As JPEG, for small disks, they are a file for each part, `images-00017.jpegs`, of concatenated JPEG
files, and `places.npy`, which says where each begins. ImageNet at 256x256 takes 262 GB raw, about
27 GB at quality 90 and 38 GB at quality 95 (4:2:0; 20.1 and 28.6 kB an image on photos of it). The
price: pixels are off by 2.6 and 2.0 gray levels on average, and each image is decoded every time it
is seen. One core feeds some 2,500 a second with Pillow and 3,800 with simplejpeg, where it feeds
some 50,000 raw ones.
"""

import dataclasses
import io
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax import files
from alexnet_jax.data.examples import Part

try:
  import simplejpeg  # the same pixels as Pillow's to the bit, sooner
except ImportError:
  simplejpeg = None

IMAGES, PLACES = 'images.npy', 'places.npy'
_HEADER_BYTES = 128  # of the .npy format 1.0, for any number of rows


def save_array(path: pathlib.Path, values: np.ndarray) -> int:
  """Writes a .npy file; returns its CRC32."""
  with files.replacing(path) as file:
    np.save(file, values, allow_pickle=False)
  return zlib.crc32(path.read_bytes())


class RawImages:
  """Writes and opens the raw images of the split in `folder`, each uint8 (size, size, 3)."""

  def __init__(self, folder: pathlib.Path, size: int):
    self._file = folder / IMAGES
    self._shape = (size, size, 3)
    self._row_bytes = size**2 * 3

  def write(self, part: Part, images: Iterable[np.ndarray]) -> dict[str, Any]:
    """Writes the images of a part, uint8 (S, S, 3) each; returns what `merge` needs."""
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
    self, parts: list[Part], records: list[dict], rows: int, moves: list[tuple[int, int]]
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
    shape = (parts[-1].stop, *self._shape)
    images = np.memmap(self._file, np.uint8, 'r+', _HEADER_BYTES, shape)
    for hole, filler in moves:
      images[hole] = images[filler]
    images.flush()
    checksums = []
    for part, record in zip(parts, records, strict=True):
      if part.stop > rows or any(part.start <= hole < part.stop for hole, _ in moves):
        checksums.append(zlib.crc32(images[part.start : min(rows, part.stop)]))
      else:
        checksums.append(int(record['checksum']))
    return {IMAGES: checksums[: sum(part.start < rows for part in parts)]}

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


@dataclasses.dataclass(frozen=True, eq=False)
class JpegImages:
  """As `RawImages`, of JPEG; what `open` returns decodes when it is read, and slices do so too.

  Attributes:
    folder: where the files are.
    size: S, side of the images in pixels.
    quality: 1..100, of what is written.
    places: int64 (N, 3), of what was opened: number of the part, first byte, bytes.
  """

  folder: pathlib.Path
  size: int
  quality: int
  places: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.int64))

  def write(self, part: Part, images: Iterable[np.ndarray]) -> dict[str, Any]:
    sizes, checksum = [], 0
    with files.replacing(self._part_file(part.number)) as file:
      for pixels in images:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, 'JPEG', quality=self.quality)
        data = encoded.getvalue()
        file.write(data)
        sizes.append(len(data))
        checksum = zlib.crc32(data, checksum)
    return {'checksum': np.uint32(checksum), 'sizes': np.array(sizes, np.int64)}

  def merge(
    self, parts: list[Part], records: list[dict], rows: int, moves: list[tuple[int, int]]
  ) -> dict[str, Any]:
    places = np.zeros((parts[-1].stop, 3), np.int64)
    for part, record in zip(parts, records, strict=True):
      places[part.start : part.stop, 0] = part.number
      places[part.start + 1 : part.stop, 1] = np.cumsum(record['sizes'])[:-1]
      places[part.start : part.stop, 2] = record['sizes']
    for hole, filler in moves:
      places[hole] = places[filler]
    return {
      'images': [int(record['checksum']) for record in records],
      PLACES: save_array(self.folder / PLACES, places[:rows]),
    }

  def finish(self, rows: int) -> None:
    """Nothing is left to do: `places.npy` has so many rows."""

  def open(self, rows: int) -> 'JpegImages':
    places = np.load(self.folder / PLACES, allow_pickle=False)
    if places.shape != (rows, 3):
      raise ValueError(f'{self.folder.name}/{PLACES} is {places.shape}')
    ends = np.zeros(places[:, 0].max() + 1, np.int64)
    np.maximum.at(ends, places[:, 0], places[:, 1] + places[:, 2])
    for part, end in enumerate(ends.tolist()):
      file = self._part_file(part)
      if (size := file.stat().st_size) < end:
        raise ValueError(f'{self.folder.name}/{file.name} has {size} bytes instead of {end}')
    return dataclasses.replace(self, places=places)

  def parts(self, rows_per_part: int) -> Iterator[tuple[str, Any]]:
    del rows_per_part  # a part is a file
    for file in sorted(self.folder.glob('images-*.jpegs')):
      yield file.name, file.read_bytes()

  def _part_file(self, part: int) -> pathlib.Path:
    return self.folder / f'images-{part:05}.jpegs'

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (len(self), self.size, self.size, 3)

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, rows: slice) -> 'JpegImages':
    return dataclasses.replace(self, places=self.places[rows])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy  # decoding always makes one
    pixels = np.empty(self.shape, np.uint8)
    self.read(np.arange(len(self)), pixels)
    return pixels if dtype is None else pixels.astype(dtype)

  def read(self, rows: np.ndarray, out: np.ndarray) -> None:
    """Decodes int64 `rows` (n,) to uint8 `out`, at least n images long.

    Raises:
      OSError: a file is absent, cut short or damaged.
    """
    for place, (part, first, size) in enumerate(self.places[rows].tolist()):
      file = self._part_file(part)
      descriptor = os.open(file, os.O_RDONLY)  # not kept open: there can be more than allowed
      try:
        data = os.pread(descriptor, size, first)
      finally:
        os.close(descriptor)
      try:
        _decode(data, out[place])
      except (OSError, ValueError) as error:
        raise OSError(f'{file} is damaged at byte {first}: {error}') from error


def _decode(data: bytes, out: np.ndarray) -> None:
  """Decodes to uint8 `out` (S, S, 3) with the exact DCT. Both ways release the interpreter."""
  if simplejpeg is None:
    with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
      out[:] = image
  else:
    simplejpeg.decode_jpeg(data, 'RGB', fastdct=False, fastupsample=False, buffer=out)
