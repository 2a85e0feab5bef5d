"""The images of a split as JPEG, for small disks: a file for each part, `images-00017.jpegs`, of
concatenated JPEG files, and `places.npy`, which says where each begins.

ImageNet at 256x256 takes 262 GB raw, about 27 GB at quality 90 and 38 GB at quality 95 (4:2:0; 20.1
and 28.6 kB an image on photos of it). The price: pixels are off by 2.6 and 2.0 gray levels on
average, and each image is decoded every time it is seen. One core feeds some 2,500 a second with
Pillow and 3,800 with simplejpeg, where it feeds some 50,000 raw ones.
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
from alexnet_jax.data.examples import Part, Record

try:
  import simplejpeg  # the same pixels as Pillow's to the bit, sooner
except ImportError:
  simplejpeg = None

PLACES = 'places.npy'


@dataclasses.dataclass(frozen=True, eq=False)
class JpegRows:
  """Images that are decoded when they are read; slices decode later, as well.

  Attributes:
    folder: where the files are.
    places: int64 (N, 3): number of the part, first byte, bytes.
    size: S, side of the images in pixels.
  """

  folder: pathlib.Path
  places: np.ndarray
  size: int

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (len(self), self.size, self.size, 3)

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, rows: slice) -> 'JpegRows':
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
      file = _part_file(self.folder, part)
      descriptor = os.open(file, os.O_RDONLY)  # not kept open: there can be more than allowed
      try:
        data = os.pread(descriptor, size, first)
      finally:
        os.close(descriptor)
      try:
        _decode(data, out[place])
      except (OSError, ValueError) as error:
        raise OSError(f'{file} is damaged at byte {first}: {error}') from error


def _part_file(folder: pathlib.Path, part: int) -> pathlib.Path:
  return folder / f'images-{part:05}.jpegs'


def _decode(data: bytes, out: np.ndarray) -> None:
  """Decodes to uint8 `out` (S, S, 3) with the exact DCT. Both ways release the interpreter."""
  if simplejpeg is None:
    with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
      out[:] = image
  else:
    simplejpeg.decode_jpeg(data, 'RGB', fastdct=False, fastupsample=False, buffer=out)


class JpegImages:
  """As `raw_images.RawImages`, with images as JPEG of the given quality, 1..100."""

  def __init__(self, folder: pathlib.Path, size: int, quality: int):
    self._folder = folder
    self._size = size
    self._quality = quality

  def write(self, part: Part, images: Iterable[np.ndarray]) -> Record:
    sizes, checksum = [], 0
    with files.replacing(_part_file(self._folder, part.number)) as file:
      for pixels in images:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, 'JPEG', quality=self._quality)
        data = encoded.getvalue()
        file.write(data)
        sizes.append(len(data))
        checksum = zlib.crc32(data, checksum)
    return {'checksum': np.uint32(checksum), 'sizes': np.array(sizes, np.int64)}

  def merge(
    self, parts: list[Part], records: list[Record], rows: int, moves: list[tuple[int, int]]
  ) -> dict[str, Any]:
    places = np.zeros((parts[-1].stop, 3), np.int64)
    for part, record in zip(parts, records, strict=True):
      places[part.start : part.stop, 0] = part.number
      places[part.start + 1 : part.stop, 1] = np.cumsum(record['sizes'])[:-1]
      places[part.start : part.stop, 2] = record['sizes']
    for hole, filler in moves:
      places[hole] = places[filler]
    with files.replacing(self._folder / PLACES) as file:
      np.save(file, places[:rows], allow_pickle=False)
    return {
      'images': [int(record['checksum']) for record in records],
      PLACES: zlib.crc32((self._folder / PLACES).read_bytes()),
    }

  def finish(self, rows: int) -> None:
    """Nothing is left to do: `places.npy` has so many rows."""

  def open(self, rows: int) -> JpegRows:
    places = np.load(self._folder / PLACES, allow_pickle=False)
    if places.shape != (rows, 3):
      raise ValueError(f'{self._folder.name}/{PLACES} is {places.shape}')
    ends = np.zeros(places[:, 0].max() + 1, np.int64)
    np.maximum.at(ends, places[:, 0], places[:, 1] + places[:, 2])
    for part, end in enumerate(ends.tolist()):
      file = _part_file(self._folder, part)
      if (size := file.stat().st_size) < end:
        raise ValueError(f'{self._folder.name}/{file.name} has {size} bytes instead of {end}')
    return JpegRows(self._folder, places, self._size)

  def parts(self, rows_per_part: int) -> Iterator[tuple[str, Any]]:
    del rows_per_part  # a part is a file
    for file in sorted(self._folder.glob(_part_file(self._folder, 0).name.replace('00000', '*'))):
      yield file.name, file.read_bytes()
