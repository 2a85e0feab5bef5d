"""One image file -> one square of pixels, as the 2012 tools made it.

Decoding is exact (no DCT-domain scaling). Like the tools of 2012, orientation tags are ignored:
pixels are taken as they are stored. `crop` scales the shorter side to S and takes the centre (paper
section 2); `warp` scales both sides to S (Caffe's ImageNet example). Shrinking uses Pillow's
antialiased triangle filter, the one nearest to the area averaging of cuda-convnet2's make-data
(0.97 grey levels apart on ImageNet photos; bicubic 1.11, box 2.9); enlarging is bicubic there and
here.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

RESIZES = ('crop', 'warp')
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'GIF')  # what image sets hold, whatever the file's name
MAX_PIXELS = 89_478_485  # Pillow's own limit; the largest ImageNet photo has 61 million


class UnreadableImage(Exception):
  """The bytes are not an image that can be decoded in full; the message says why."""


def square(data: bytes | Image.Image | np.ndarray, size: int, resize: str) -> np.ndarray:
  """Decodes and resizes one image.

  Args:
    data: an encoded image, one of Pillow, or uint8 (H, W, 3) RGB or (H, W) gray.
    size: S, the side of the result in pixels.
    resize: 'crop' or 'warp'.

  Returns:
    uint8 (S, S, 3) RGB.

  Raises:
    UnreadableImage: truncated, damaged, of another format, or with too many pixels.
  """
  is_array = isinstance(data, np.ndarray)
  image = Image.fromarray(data).convert('RGB') if is_array else _decode(data)
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


def _decode(data: bytes | Image.Image) -> Image.Image:
  """An RGB image; transparent parts become white."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # such as damaged EXIF data, which is not used
      opened = isinstance(data, Image.Image)
      image = data if opened else Image.open(io.BytesIO(data), formats=FORMATS)
      if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f'too many pixels: {image.width}x{image.height}')
      image.load()
      return _to_rgb(image)
  except (UnreadableImage, MemoryError):
    raise
  except UnidentifiedImageError as error:  # Pillow's message has an address, which always differs
    raise UnreadableImage(f'not a {", ".join(FORMATS)} image') from error
  except Exception as error:  # decoders fail in many ways on damaged bytes
    raise UnreadableImage(f'{type(error).__name__}: {error}') from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):  # 16-bit gray: Pillow's own conversion clips instead of scaling
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
  if 'transparency' in image.info or image.mode in ('LA', 'PA', 'RGBA', 'La', 'RGBa'):
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')
