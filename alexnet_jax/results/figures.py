"""Figures of a run: learning curves and first-layer kernels.

Drawn with Matplotlib's objects, never `pyplot`, so that the open figures, the back end and the
rcParams of a user's session stay as they are.
"""

import functools
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_jax import files

DPI = 160
INK, FAINT, _RULE = '#1f2933', '#6b7682', '#dde1e6'
_GRAY, _RED, _BLUE = '#7b8794', '#c2412d', '#2b6cb0'
_PANELS = (  # heading, factor, {metric: (label, color)}
  ('Loss', 1, {'train/loss': ('train', _GRAY), 'eval/loss': ('validation', _RED)}),
  (
    'Error, %',
    100,
    {
      'train/top1_error': ('train top-1', _GRAY),
      'eval/top1_error': ('validation top-1', _RED),
      'eval/top5_error': ('validation top-5', _BLUE),
    },
  ),
)
_MANY = 100  # points of a curve from which it is shown as a running mean
_TILE = 88  # pixels, about, on the side of a kernel
_COLUMNS = 16  # as in the paper's Figure 3
# The first comes with Matplotlib; the others have letters that it lacks, where they are installed.
_FONTS = (
  'DejaVu Sans',
  'Noto Sans CJK JP',
  'Arial Unicode MS',
  'Hiragino Sans',
  'Microsoft YaHei',
  'Droid Sans Fallback',
  'Unifont',
)


def learning_curves(
  records: Sequence[Mapping[str, float]], path: str | os.PathLike, title: str = ''
) -> None:
  """Draws loss and error against epochs.

  More than 100 training points are shown faintly, under their running mean. The loss axis is
  logarithmic when the loss falls by more than a factor of ten. The legend has the last values, and
  up to eight drops of the learning rate are marked.

  Args:
    records: What `read_metrics` returns.
    path: Where to put the PNG, 1920 x 800 pixels.
    title: A line above.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import LogLocator, NullLocator

  figure = Figure(figsize=(12, 5), dpi=DPI, facecolor='white')
  figure.set_layout_engine('constrained', w_pad=0.2, h_pad=0.15)
  rates = series(records, 'learning_rate')
  drops = np.flatnonzero(rates[1:, 1] < 0.99 * rates[:-1, 1]) + 1
  if len(rates):
    title += f'   learning rate {rates[:, 1].max():.2g}, at the end {rates[-1, 1]:.2g}'
  figure.suptitle(drawable(title), x=0.01, ha='left', fontsize=13, color=INK, **text_style())
  for axes, (heading, factor, metrics) in zip(figure.subplots(1, 2), _PANELS, strict=True):
    values = []
    for name, (label, color) in metrics.items():
      points = series(records, name) * (1, factor)
      if len(points):
        values.append(_curve(axes, points, label, color))
    style_axes(axes)
    axes.set_title(heading, loc='left', fontsize=11.5, color=INK)
    axes.set_xlabel('epoch', fontsize=10, color=FAINT)
    axes.set_xlim(0, max((record.get('epoch', 0) for record in records), default=0) or 1)
    shown = np.concatenate([np.zeros(0), *values])
    if heading == 'Loss' and len(shown) and 0 < shown.min() < shown.max() / 10:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_locator(NullLocator())
      axes.yaxis.set_major_formatter('{x:g}')
    else:
      axes.set_ylim(0, np.max(shown, initial=0) * 1.05 or factor)
    if values:
      axes.legend(
        loc='upper right',
        facecolor='white',
        edgecolor='white',
        framealpha=1,
        labelcolor='linecolor',
      )
    for epoch in rates[drops, 0] if len(drops) <= 8 else ():
      axes.axvline(epoch, color=FAINT, linewidth=0.7, linestyle=(0, (3, 3)), zorder=1)
  save_png(figure, path)


def series(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  """The finite values of a metric: (n, 2), columns epoch and value.

  Of the records of a step only the first has its epoch.
  """
  epochs = {record['step']: record['epoch'] for record in records if 'epoch' in record}
  found = [(epochs.get(r['step'], np.nan), r[name]) for r in records if name in r]
  points = np.asarray(found, np.float64).reshape(-1, 2)
  return points[np.isfinite(points).all(axis=1)]


def _curve(axes, points: np.ndarray, label: str, color: str) -> np.ndarray:
  """Draws one curve; returns the values that the axis should show."""
  line = points
  if label.startswith('train') and len(points) > _MANY:
    axes.plot(*points.T, color=color, linewidth=0.6, alpha=0.35)
    window = np.ones(len(points) // 100 + 5)
    count = np.convolve(np.ones(len(points)), window, 'same')  # fewer at the ends
    line = np.stack([points[:, 0], np.convolve(points[:, 1], window, 'same') / count], axis=1)
  marker = 'o' if len(line) <= 30 else None
  text = f'{label} {line[-1, 1]:.3g}'
  axes.plot(*line.T, color=color, linewidth=1.8, marker=marker, markersize=4, label=text)
  return np.append(line[:, 1], np.quantile(points[:, 1], 0.995))


def style_axes(axes) -> None:
  """Removes the box and makes grid and tick labels faint."""
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(FAINT)
  axes.grid(axis='y', color=_RULE, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(axis='both', which='both', labelsize=9.5, labelcolor=FAINT, color=FAINT)
  axes.tick_params(axis='y', which='both', length=0)


def filter_grid(
  kernel: np.ndarray, path: str | os.PathLike, *, towers: int = 1, title: str = ''
) -> None:
  """Draws each kernel of a first layer as an image, as in Figure 3 of the paper.

  Each kernel is scaled by itself: zero is mid-gray, and its largest absolute weight, of all
  positions and channels, is 0 or 255 in that channel. Weights become squares, not interpolated.

  Args:
    kernel: Weights (height, width, 3 or 1 input channels, kernels), finite, in RGB order.
    path: Where to put the PNG.
    towers: The number of equal parts of the kernels, in order, that are drawn as separate blocks.
    title: A line above.
  """
  from matplotlib.figure import Figure

  between, margin = 28, 40
  blocks = [
    np.pad(kernel_image(tower), ((0, between), (0, 0), (0, 0)), constant_values=255)
    for tower in np.split(kernel, towers, axis=3)
  ]
  grid = np.concatenate(blocks)[:-between]
  top, right = margin, margin
  if title:
    top, right = 110, margin + max(600 - grid.shape[1], 0)
  canvas = np.pad(grid, ((top, margin), (margin, right), (0, 0)), constant_values=255)
  height, width = canvas.shape[:2]
  # Half a pixel more, because Matplotlib rounds the product of inches and dots per inch down.
  figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI)
  figure.figimage(canvas, origin='upper')
  x, y = margin / width, 1 - 66 / height
  figure.text(x, y, drawable(title), fontsize=13, color=INK, **text_style())
  save_png(figure, path)


def kernel_image(kernel: np.ndarray) -> np.ndarray:
  """Kernels (h, w, c, n) in rows of sixteen on white, each scaled by itself: uint8 (H, W, 3)."""
  kernel = kernel.astype(np.float64)
  largest = np.abs(kernel).max(axis=(0, 1, 2), keepdims=True)
  levels = np.rint(127.5 + 127.5 * kernel / np.where(largest > 0, largest, 1))
  images = np.moveaxis(levels.astype(np.uint8), 3, 0)
  images = np.broadcast_to(images, (*images.shape[:3], 3))
  scale = max(1, round(_TILE / max(kernel.shape[:2])))
  tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
  gap, columns = 6, min(_COLUMNS, len(tiles))
  missing = -len(tiles) % columns
  padding = ((0, missing), (0, gap), (0, gap), (0, 0))
  tiles = np.pad(tiles, padding, constant_values=255)
  count, height, width, _ = tiles.shape
  tiles = tiles.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2)
  return tiles.reshape(count // columns * height, columns * width, 3)[:-gap, :-gap]


@functools.cache
def text_style() -> dict[str, Any]:
  """Matplotlib arguments for text in any script, with `$` shown as it is, not as math."""
  from matplotlib import font_manager

  installed = font_manager.get_font_names()
  return {'fontfamily': [font for font in _FONTS if font in installed], 'parse_math': False}


def drawable(text: str) -> str:
  """The text with '?' for bytes that are not UTF-8, which file names may have."""
  return text.encode('utf-8', 'replace').decode()


def save_png(figure, path: str | os.PathLike) -> None:
  """Renders `figure` as PNG and writes it atomically."""
  files.write(path, png(figure))


def png(figure) -> bytes:
  """Renders `figure` as PNG; glyphs that no font has become boxes."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  content = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing from')
    FigureCanvasAgg(figure).print_png(content)
  return content.getvalue()
