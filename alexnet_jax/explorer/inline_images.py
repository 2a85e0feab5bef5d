"""Arrays as images inside a page: PNG, or JPEG for photos."""

import io

import numpy as np
from PIL import Image

from alexnet_jax.results.html_page import data_uri

_SMALL = 64  # pixels on a side, up to which pixels are kept exactly


def encode(pixels: np.ndarray, side: int = 0, lossless: bool = False) -> str:
  """Pixels uint8 (H, W, 3) as a data URI; a square no larger than `side` if that is given."""
  image = Image.fromarray(pixels)
  if side and side < len(pixels):
    image = image.resize((side, side), Image.Resampling.BILINEAR)
  if lossless or image.width <= _SMALL:
    return _encoded(image, 'png')
  return _encoded(image, 'jpeg', quality=85)


def map_strip(maps: np.ndarray, brightest: float = 0) -> str:
  """Maps float (H, W, K) side by side: 0 is black, positive values are warm, negative ones blue.

  The brightest color is an absolute value of `brightest`, by default each map's largest; NaN is
  transparent.
  """
  levels = [_levels(maps[..., k], brightest) for k in range(maps.shape[2])]
  image = Image.fromarray(np.concatenate(levels, axis=1))
  image.putpalette(_palette().tobytes())
  return _encoded(image, 'png', transparency=0)


def value_square(values: np.ndarray) -> str:
  """Values (N,) in rows of a square, colored as by `map_strip`; the rest is transparent."""
  side = int(np.ceil(np.sqrt(len(values))))
  rows = -(-len(values) // side)
  padded = np.full(rows * side, np.nan, values.dtype)
  padded[: len(values)] = values
  return map_strip(padded.reshape(rows, side, 1))


def _levels(values: np.ndarray, brightest: float) -> np.ndarray:
  brightest = brightest or np.nanmax(np.abs(values)) or 1
  return np.nan_to_num(np.rint(128 + 127 * values / brightest)).astype(np.uint8)


def _palette() -> np.ndarray:
  """Colors uint8 (256, 3) of levels; 128 is 0."""
  x = (np.arange(256) - 128) / 127
  stops, warm, blue = (
    [0, 0.35, 0.7, 1],
    [(0, 0, 0), (178, 52, 34), (247, 179, 60), (255, 252, 225)],
    [(0, 0, 0), (24, 66, 150), (64, 148, 235), (214, 240, 255)],
  )
  sides = [
    np.stack([np.interp(np.abs(x), stops, channel) for channel in zip(*colors, strict=True)], 1)
    for colors in (warm, blue)
  ]
  return np.rint(np.where(x[:, None] > 0, *sides)).astype(np.uint8)


def _encoded(image: Image.Image, kind: str, **options) -> str:
  content = io.BytesIO()
  image.save(content, kind, optimize=True, **options)
  return data_uri(content.getvalue(), kind)
