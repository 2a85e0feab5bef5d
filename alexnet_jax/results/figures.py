"""Pictures of a run: learning curves and first-layer kernels.

They are drawn with Matplotlib's objects, never `pyplot`, and set what they look like themselves:
the figures, the back end and the defaults of a user's session stay as they are.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.results import fonts

DPI = 160
INK, FAINT, _RULE = '#1f2933', '#6b7682', '#dde1e6'
_GREY, _RED, _BLUE = '#7b8794', '#c2412d', '#2b6cb0'
_PANELS = (  # heading, factor, {metric: (label, color)}
  ('Loss', 1, {'train/loss': ('train', _GREY), 'eval/loss': ('validation', _RED)}),
  (
    'Error, %',
    100,
    {
      'train/top1_error': ('train top-1', _GREY),
      'eval/top1_error': ('top-1', _RED),
      'eval/top5_error': ('top-5', _BLUE),
    },
  ),
)
_MANY = 100  # points of a curve from which it is shown as a running mean
_TILE = 88  # pixels, about, on the side of a kernel
_COLUMNS = 16  # as in the paper's Figure 3


def learning_curves(
  records: Sequence[Mapping[str, float]], path: str | os.PathLike, title: str = ''
) -> None:
  """Draws loss and error against epochs, for a handful of records or many thousands.

  Many noisy training points are shown faintly, under their running mean. The loss axis is
  logarithmic when the loss falls by more than a factor of ten. Each curve is labeled with its last
  value; up to eight drops of the learning rate are marked with the new rate.

  Args:
    records: What `read_metrics` returns: dicts with `step` and some of `epoch`, `train/loss`,
      `eval/loss`, `train/top1_error`, `eval/top1_error`, `eval/top5_error` (shares in [0, 1]) and
      `learning_rate`. Without any `epoch` the axis counts steps.
    path: Where to put the PNG, 1920 x 800 pixels.
    title: A line above.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 5), dpi=DPI, facecolor='white')
  figure.text(0.045, 0.925, **fonts.label(title), fontsize=14, fontweight='bold', color=INK)
  epochs, unit = _epochs(records)
  rates = _series(records, epochs, 'learning_rate')
  for left, (heading, factor, metrics) in zip((0.045, 0.54), _PANELS, strict=True):
    axes = figure.add_axes((left, 0.115, 0.355, 0.66), facecolor='white')
    curves = [
      (label, color, _series(records, epochs, name) * (1, factor))
      for name, (label, color) in metrics.items()
    ]
    curves = [curve for curve in curves if len(curve[2])]
    _panel(axes, heading, factor, curves)
    axes.set_xlim(0, max(epochs, default=0) or 1)
    axes.set_xlabel(unit, fontsize=10, color=FAINT)
    _mark_rates(axes, rates)
  save_png(figure, path)


def filter_grid(
  kernel: np.ndarray, path: str | os.PathLike, *, towers: int = 1, title: str = ''
) -> None:
  """Draws each kernel of a first layer as a picture, as in Figure 3 of the paper.

  Each kernel is scaled by itself: zero is mid-gray, and its largest absolute weight, of all places
  and channels, is 0 or 255 in that channel. Weights are magnified to squares, not interpolated.

  Args:
    kernel: Weights (height, width, 3 or 1 input channels, kernels), in RGB order.
    path: Where to put the PNG.
    towers: The parts into which the kernels are split, in order; drawn as separate blocks.
    title: A line above.

  Raises:
    UserError: `kernel` cannot be drawn so.
  """
  kernel = np.asarray(kernel, np.float64)
  if kernel.ndim != 4 or kernel.shape[2] not in (1, 3) or towers < 1 or kernel.shape[3] % towers:
    raise UserError(
      f'a kernel of shape {kernel.shape} in {towers} tower(s) cannot be drawn; allowed is (height, '
      'width, 1 or 3, kernels) with as many kernels in each tower; pass the first convolution'
    )
  if not np.isfinite(kernel).all():
    raise UserError('a kernel with weights that are not finite cannot be drawn; use an earlier one')
  blocks = [_grid(part) for part in np.split(_tiles(kernel), towers)]
  margin, heading, label, gap = 40, 70 if title else 0, 44 if towers > 1 else 0, 28
  height, width = blocks[0].shape[:2]
  canvas_height = 2 * margin + heading + towers * (label + height) + (towers - 1) * gap
  canvas_width = 2 * margin + max(width, 600 if title else 0)  # room for a line of text
  canvas = np.full((canvas_height, canvas_width, 3), 255, np.uint8)
  texts = [(margin + 26, title, 'bold', 14, INK)]
  top = margin + heading
  for tower, block in enumerate(blocks):
    if label:
      count = kernel.shape[3] // towers
      text = f'Tower {tower + 1}: kernels {tower * count + 1} to {(tower + 1) * count}'
      texts.append((top + 22, text, 'normal', 10, FAINT))
      top += label
    canvas[top : top + height, margin : margin + width] = block
    top += height + gap
  _save_pixels(canvas, margin, texts, path)


def _epochs(records: Sequence[Mapping[str, float]]) -> tuple[list[float], str]:
  """Where each record lies on the horizontal axis, and that axis's name.

  Batches are of one size, so epochs are proportional to steps: one record with both tells all.
  """
  for record in reversed(records):
    if record['step'] and record.get('epoch'):
      per_step = record['epoch'] / record['step']
      return [r['step'] * per_step for r in records], 'Epoch'
  return [r['step'] for r in records], 'Step'


def _series(
  records: Sequence[Mapping[str, float]], epochs: Sequence[float], name: str
) -> np.ndarray:
  """The finite values of a metric: (n, 2), columns epoch and value."""
  found = [(e, r[name]) for e, r in zip(epochs, records, strict=True) if name in r]
  points = np.asarray(found, np.float64).reshape(-1, 2)
  return points[np.isfinite(points).all(axis=1)]


def _running_mean(points: np.ndarray) -> np.ndarray:
  """`points`, each value replaced by the mean of some 1 % of them around it, fewer at an end."""
  reach = len(points) // 200 + 2
  sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
  places = np.arange(len(points))
  first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(points))
  return np.stack([points[:, 0], (sums[last] - sums[first]) / (last - first)], axis=1)


def _panel(axes, heading: str, usual_top: float, curves: list) -> None:
  """Fills `axes` with `curves` of (label, color, points); `usual_top` is for want of any."""
  ends, tops, lows = [], [0.0], []
  for label, color, points in curves:
    line = points
    if label.startswith('train') and len(points) > _MANY:
      line = _running_mean(points)
      axes.plot(*points.T, color=color, linewidth=0.6, alpha=0.35, zorder=2)
    marker = 'o' if len(line) <= 30 else None
    front = 3 if label.startswith('train') else 4
    axes.plot(
      *line.T, color=color, linewidth=1.8, marker=marker, markersize=4, zorder=front, clip_on=False
    )
    ends.append((line[-1, 1], label, color))
    tops += [line[:, 1].max(), np.quantile(points[:, 1], 0.995)]
    lows.append(line[:, 1].min())
  style_axes(axes)
  if heading == 'Loss' and lows and 0 < min(lows) < max(tops) / 10:
    _log_scale(axes, min(lows) / 1.15, max(tops) * 1.15)
  else:
    axes.set_ylim(0, max(tops) * 1.05 or usual_top)
  axes.text(0, 1.12, heading, transform=axes.transAxes, fontsize=11.5, color=INK)
  _label_ends(axes, ends, '.1f' if heading != 'Loss' else '.3g')


def style_axes(axes) -> None:
  """Quiet axes: no box, faint horizontal rules, small gray figures."""
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color(FAINT)
  axes.grid(axis='y', color=_RULE, linewidth=0.8)
  axes.grid(visible=False, axis='x')
  axes.set_axisbelow(True)
  axes.tick_params(axis='both', which='both', labelsize=9.5, labelcolor=FAINT, color=FAINT)
  axes.tick_params(axis='y', which='both', length=0)


def _log_scale(axes, bottom: float, top: float) -> None:
  """A logarithmic vertical axis with plain numbers on it."""
  from matplotlib import ticker

  axes.set_yscale('log')
  axes.set_ylim(bottom, top)
  steps = (1, 2, 5) if top / bottom < 1000 else (1,)
  axes.yaxis.set_major_locator(ticker.LogLocator(10, subs=steps, numticks=20))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))


def _label_ends(axes, ends: list, number: str) -> None:
  """Writes name and last value of each curve at its right end, moved apart where they collide."""
  gap = 0.065  # of the axes' height: one line of text
  transform = axes.transData + axes.transAxes.inverted()
  placed: list[list] = []
  for value, label, color in sorted(ends, key=lambda end: end[0]):
    height = float(np.clip(transform.transform((0, value))[1], 0, 1))
    placed.append([max(height, placed[-1][0] + gap) if placed else height, value, label, color])
  above = 1 + gap
  for place in reversed(placed):
    above = place[0] = min(place[0], above - gap)
  for height, value, label, color in placed:
    text = f'{label} {value:{number}}'
    axes.text(1.02, height, text, transform=axes.transAxes, fontsize=10, color=color, va='center')


def _mark_rates(axes, rates: np.ndarray) -> None:
  """Marks drops of the learning rate; of one that changes all the time, tells the two ends."""
  if not len(rates):
    return
  falls = np.flatnonzero(rates[1:, 1] < 0.99 * rates[:-1, 1]) + 1
  if len(falls) > 8:
    texts = [(0.0, f'learning rate {rates[:, 1].max():.2g} to {rates[-1, 1]:.2g}')]
  else:
    peak = rates[: falls[0] if len(falls) else None, 1].max()  # after the warm-up, if there is one
    texts = [(0.0, f'learning rate {peak:.2g}')] + [(x, f'{rate:.2g}') for x, rate in rates[falls]]
    for x in rates[falls, 0]:
      axes.axvline(x, color=FAINT, linewidth=0.7, linestyle=(0, (3, 3)), zorder=1)
  taken = [-math.inf, -math.inf, -math.inf]  # the right end of the text on each level
  for x, text in texts:
    left = x / axes.get_xlim()[1]
    level = next((i for i, end in enumerate(taken) if end < left), len(taken) - 1)
    taken[level] = left + 0.017 * len(text) + 0.02
    axes.text(left, 1.02 + 0.045 * level, text, transform=axes.transAxes, fontsize=8.5, color=FAINT)


def _tiles(kernel: np.ndarray) -> np.ndarray:
  """Kernels (h, w, c, n) as pictures, uint8 (n, h * s, w * s, 3), zero at mid-gray."""
  largest = np.abs(kernel).max(axis=(0, 1, 2), keepdims=True)
  levels = np.rint(127.5 + 127.5 * kernel / np.where(largest > 0, largest, 1))
  pictures = np.moveaxis(levels.astype(np.uint8), 3, 0)
  pictures = np.broadcast_to(pictures, (*pictures.shape[:3], 3))
  scale = max(1, round(_TILE / max(kernel.shape[:2])))
  return pictures.repeat(scale, axis=1).repeat(scale, axis=2)


def _grid(tiles: np.ndarray) -> np.ndarray:
  """Pictures (n, h, w, 3) in rows of sixteen on white, uint8 (height, width, 3)."""
  gap = 6
  count, height, width = tiles.shape[:3]
  columns = min(_COLUMNS, count)
  rows = math.ceil(count / columns)
  shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
  grid = np.full(shape, 255, np.uint8)
  for i, tile in enumerate(tiles):
    top, left = i // columns * (height + gap), i % columns * (width + gap)
    grid[top : top + height, left : left + width] = tile
  return grid


def _save_pixels(canvas: np.ndarray, left: int, texts: list, path: str | os.PathLike) -> None:
  """Saves `canvas` as it is, with `texts` of (baseline, text, weight, size, color) on it."""
  from matplotlib.figure import Figure

  height, width = canvas.shape[:2]
  # Half a pixel more, because Matplotlib rounds the product of inches and dots per inch down.
  figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI)
  figure.figimage(canvas, origin='upper')
  for baseline, text, weight, size, color in texts:
    x, y = left / width, 1 - baseline / height
    figure.text(x, y, **fonts.label(text), fontweight=weight, fontsize=size, color=color)
  save_png(figure, path)


def save_png(figure, path: str | os.PathLike) -> None:
  """Renders `figure` as PNG and puts it in place in one stroke."""
  files.write_bytes(path, png(figure))


def png(figure) -> bytes:
  """Renders `figure` as PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  content = io.BytesIO()
  FigureCanvasAgg(figure).print_png(content)
  return content.getvalue()
