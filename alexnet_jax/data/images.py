"""One image file -> one square of pixels, as the 2012 tools made it.

Decoding is exact (no DCT-domain scaling). The tools of 2012 took pixels as they are stored, without
regard to orientation tags; other photos are turned upright first. `crop` scales the shorter side to
S and takes the center (paper section 2); `warp` scales both sides to S (Caffe's ImageNet example).
Shrinking uses Pillow's antialiased triangle filter, the one nearest to the area averaging of
cuda-convnet2's make-data (0.97 gray levels apart on ImageNet photos; bicubic 1.11, box 2.9);
enlarging is bicubic there and here.
"""

import io
import pathlib
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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


class UnreadableImage(Exception):
  """The bytes are not an image that can be decoded in full; the message says why."""


def square(
  data: bytes | pathlib.Path | Image.Image | np.ndarray,
  size: int,
  resize: str,
  upright: bool = False,
) -> np.ndarray:
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
      return _to_rgb(_turned(image) if upright else image)
  except (UnreadableImage, MemoryError):
    raise
  except UnidentifiedImageError as error:  # Pillow's message has an address, which always differs
    raise UnreadableImage(f'not a {", ".join(FORMATS)} image') from error
  except Exception as error:  # decoders fail in many ways on damaged bytes
    raise UnreadableImage(f'{type(error).__name__}: {error}') from error


_TURNS = {  # EXIF 2.3, tag 0x0112: what brings the pixels upright
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def _turned(image: Image.Image) -> Image.Image:
  try:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception:  # damaged EXIF data; the pixels are good
    return image
  if turn is None:
    return image
  turned = image.transpose(turn)
  turned.info = image.info  # which says what is transparent
  return turned


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
