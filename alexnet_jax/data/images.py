"""Images in any form -> squares of pixels, as the 2012 tools made them.

Decoding is exact (no DCT-domain scaling). The tools of 2012 took pixels as they are stored, without
regard to orientation tags; other photos are turned upright first. `crop` scales the shorter side to
S and takes the center (paper section 2); `warp` scales both sides to S (Caffe's ImageNet example).
Shrinking uses Pillow's antialiased triangle filter, the one nearest to the area averaging of
cuda-convnet2's make-data (0.97 gray levels apart on ImageNet photos; bicubic 1.11, box 2.9);
enlarging is bicubic there and here.
"""

import collections
import concurrent.futures
import contextlib
import io
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.runtime.environment import usable_cores

RESIZES = ('crop', 'warp')
# Formats that Pillow recognizes by their first bytes, whose size is known before they are decoded,
# and which need no other program; of animations and pages the first is taken.
_SAFE = 'JPEG PNG BMP WEBP GIF TIFF PPM JPEG2000 AVIF QOI PCX SGI'.split()
Image.init()
FORMATS = tuple(name for name in _SAFE if name in Image.OPEN)
EXTENSIONS = tuple(
  extension
  for extension, name in Image.registered_extensions().items()
  if name in (*FORMATS, 'MPO')  # what phones save as .jpg, too
)
MAX_PIXELS = 89_478_485  # Pillow's own limit; the largest ImageNet photo has 61 million
# Images that a thread decodes at a time: of small ones, threads would wait for each other.
_CHUNK = 16

AnyImage = bytes | pathlib.Path | Image.Image | np.ndarray


class UnreadableImage(Exception):
  """The bytes are not an image that can be decoded in full; the message says why."""


def read_image(data: AnyImage, size: int, resize: str, upright: bool = False) -> np.ndarray:
  """Decodes and resizes one image.

  Args:
    data: an encoded image, a file of one, one of Pillow, or uint8 (H, W, 3) RGB or (H, W) gray.
    size: S, the side of the result in pixels.
    resize: 'crop' or 'warp'.
    upright: whether to apply a file's EXIF orientation.

  Returns:
    uint8 (S, S, 3) RGB.

  Raises:
    UnreadableImage: absent, truncated, damaged, of another format, or with too many pixels.
  """
  if isinstance(data, pathlib.Path):
    try:
      data = data.read_bytes()
    except OSError as error:
      raise UnreadableImage(error.strerror) from error
  if isinstance(data, np.ndarray):
    image = Image.fromarray(data).convert('RGB')
  else:
    image = _decode(data, upright)
  width, height = image.size
  enlarges = size > min(width, height)
  resample = Image.Resampling.BICUBIC if enlarges else Image.Resampling.BILINEAR
  if resize == 'warp':
    return np.asarray(image.resize((size, size), resample))
  scale = size / min(width, height)
  width, height = int(width * scale + 0.5), int(height * scale + 0.5)
  if width * height > MAX_PIXELS:
    raise UnreadableImage(f'too long and narrow: {image.width}x{image.height}')
  left, top = (width - size) // 2, (height - size) // 2
  image = image.resize((width, height), resample)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def _decode(data: bytes | Image.Image, upright: bool = False) -> Image.Image:
  """An RGB image; transparent parts become white."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # such as damaged EXIF data, which is not used
      if isinstance(data, Image.Image):
        image = data
      else:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
      if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f'too many pixels: {image.width}x{image.height}')
      image.load()
      if upright:
        image = image.copy() if image is data else image
        with contextlib.suppress(Exception):  # damaged EXIF data; the pixels are good
          ImageOps.exif_transpose(image, in_place=True)
      return _to_rgb(image)
  except (UnreadableImage, MemoryError):
    raise
  except UnidentifiedImageError as error:  # Pillow's message has an address, which always differs
    raise UnreadableImage(f'not a {", ".join(FORMATS)} image') from error
  except Exception as error:  # decoders fail in many ways on damaged bytes
    raise UnreadableImage(f'{type(error).__name__}: {error}') from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):  # 16-bit gray: Pillow's own conversion clips instead of scaling
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
      raise UnreadableImage('32-bit pixels of unknown range: save it with 8 or 16 bits')
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert('RGB')
  if image.mode == 'F':
    raise UnreadableImage('floating-point pixels of unknown range: save it with 8 or 16 bits')
  if 'transparency' in image.info or image.mode in ('LA', 'PA', 'RGBA', 'La', 'RGBa'):
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


def as_list(given: Any) -> tuple[list[AnyImage], bool]:
  """Images in the forms that a program may have them in.

  Args:
    given: one image: a path, a PIL image, or uint8 (H, W, 3) RGB, (H, W, 1) or (H, W) gray. Or
      many: an iterable of such, or uint8 (N, H, W, 3) or (N, H, W, 1).

  Returns:
    A list of images as `read_image` takes them, and whether a single one was given.

  Raises:
    UserError: something is neither.
  """
  one = _as_image(given)
  if one is not None:
    return [one], True
  items = [given]
  if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, Mapping)):
    items = list(given) if getattr(given, 'ndim', 1) in (1, 4) else items
  found: list[AnyImage] = []
  for item in items:
    image = _as_image(item)
    if image is None:
      has_shape = hasattr(item, 'shape') and hasattr(item, 'dtype')
      what = f'of {item.dtype}, shape {tuple(item.shape)}' if has_shape else f'{item!r:.60}'
      raise UserError(
        f'input {len(found) + 1}, {type(item).__name__} {what}, is no image: give paths, PIL'
        ' images, or uint8 arrays (H, W, 3), (H, W, 1) or (H, W), one or many, or (N, H, W, 3)'
      )
    found.append(image)
  return found, False


def _as_image(item: Any) -> AnyImage | None:
  if isinstance(item, (str, os.PathLike)):
    return expand(item, 'image')
  if isinstance(item, Image.Image):
    return item
  if not hasattr(item, '__array__'):
    return None
  pixels = np.asarray(item)
  if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[2:] not in ((), (1,), (3,)):
    return None
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  return pixels if pixels.ndim >= 2 else None


def batches(
  images: Sequence[AnyImage], size: int, resize: str, batch_size: int, upright: bool = False
) -> Iterator[list[np.ndarray | UnreadableImage]]:
  """Decodes images in order, a few batches ahead, on all cores.

  Threads are as fast as processes here, since decoders release the interpreter, and start at once.

  Args:
    images, size, resize, upright: see `read_image`.
    batch_size: images in each list but the last.

  Yields:
    Lists of what `read_image` returned or raised.
  """

  def decode(chunk: Sequence[AnyImage]) -> list[np.ndarray | UnreadableImage]:
    found: list[np.ndarray | UnreadableImage] = []
    for image in chunk:
      try:
        found.append(read_image(image, size, resize, upright))
      except UnreadableImage as error:
        found.append(error)
    return found

  ahead: collections.deque[Iterator] = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(usable_cores(), thread_name_prefix='decode')
  try:
    # `read_image` silences Pillow while it decodes, which in one thread ends that of another.
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', module=r'PIL\.')
      for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        chunks = [batch[place : place + _CHUNK] for place in range(0, len(batch), _CHUNK)]
        ahead.append(pool.map(decode, chunks))
        if len(ahead) > 2:
          yield list(itertools.chain.from_iterable(ahead.popleft()))
      for decoded in ahead:
        yield list(itertools.chain.from_iterable(decoded))
  finally:
    pool.shutdown(cancel_futures=True)
