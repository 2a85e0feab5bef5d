"""The paper's Figure 4: images with their predictions, and with their nearest neighbors."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.inference.image_predictions import ImagePrediction
from alexnet_jax.results.figures import DPI, FAINT, INK, drawable, save_png, text_style
from alexnet_jax.terminal import shortened

_BAR, _TRUE = '#c6d8ec', '#f0b4aa'
_COLUMNS = 4  # as in the paper
_SIDE, _GAP, _LINE = 1.9, 0.35, 0.22  # inches: an image, the gap with its caption, a bar
_TITLE, _MARGIN = 0.85, 0.4


def draw_predictions(
  shown: Sequence[tuple[np.ndarray, ImagePrediction]], path: str | os.PathLike, title: str
) -> None:
  """Draws images with bars for their most probable classes, the true one in red (Figure 4 left).

  Args:
    shown: images uint8 (S, S, 3) with their predictions; drawn in rows of four.
    path: where to put the PNG.
    title: a line above.
  """
  bars = max(len(prediction.classes) for _, prediction in shown)
  columns = min(_COLUMNS, len(shown))
  figure, axes = _grid([_SIDE, bars * _LINE] * math.ceil(len(shown) / columns), columns, title)
  for place, (image, each) in enumerate(shown):
    row, column = divmod(place, columns)
    upper, lower = axes[2 * row : 2 * row + 2, column]
    caption = each.true_class or Path(each.name).name
    _show(upper, image, caption, INK if each.true_class else FAINT)
    colors = [_TRUE if name == each.true_class else _BAR for name in each.classes]
    lower.barh(range(len(colors)), each.probabilities, height=0.86, color=colors)
    lower.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))
    for y, (name, share) in enumerate(zip(each.classes, each.probabilities, strict=True)):
      _text(lower, 0.03, y, shortened(drawable(name), 22), INK, 'left')
      _text(lower, 1, y, f'{100 * share:.0f}%', FAINT, 'right')
  save_png(figure, path)


def draw_neighbors(
  rows: Sequence[Sequence[tuple[np.ndarray, str]]], path: str | os.PathLike, title: str
) -> None:
  """Draws each query and, to its right, its nearest images (Figure 4 right).

  Args:
    rows: images uint8 (S, S, 3) and captions: a query, then its neighbors, nearest first.
    path: where to put the PNG.
    title: a line above.
  """
  figure, axes = _grid([_SIDE] * len(rows), max(map(len, rows)), title)
  for row, shown in enumerate(rows):
    for column, (image, caption) in enumerate(shown):
      _show(axes[row, column], image, caption, FAINT if column else INK)
  save_png(figure, path)


def _grid(heights: Sequence[float], columns: int, title: str):
  """A white figure with rows of these heights in inches, and its axes (rows, columns), hidden."""
  from matplotlib.figure import Figure

  used = columns * (_SIDE + _GAP) - _GAP
  width = max(used + 2 * _MARGIN, 5.0)
  height = _TITLE + sum(heights) + (len(heights) - 1) * _GAP + _MARGIN + _GAP
  figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
  axes = figure.subplots(
    len(heights),
    columns,
    squeeze=False,
    height_ratios=heights,
    gridspec_kw={
      'left': _MARGIN / width,
      'right': (_MARGIN + used) / width,
      'top': 1 - _TITLE / height,
      'bottom': (_MARGIN + _GAP) / height,
      'wspace': _GAP / _SIDE,
      'hspace': _GAP / np.mean(heights),
    },
  )
  for each in axes.flat:
    each.set_axis_off()
  title = shortened(drawable(title), int(10 * width))
  style = text_style() | {'fontsize': 12, 'color': INK, 'va': 'center'}
  figure.text(_MARGIN / width, 1 - 0.45 / height, title, **style)
  return figure, axes


def _show(axes, image: np.ndarray, caption: str, color: str) -> None:
  # Small images stay squares of pixels; large ones are averaged down.
  axes.imshow(image, interpolation='nearest' if len(image) <= 64 else 'antialiased')
  caption = shortened(drawable(caption), 28)
  _text(axes, 0.5, -0.08, caption, color, 'center', transform=axes.transAxes)


def _text(axes, x: float, y: float, text: str, color: str, align: str, **options) -> None:
  options |= text_style() | {'fontsize': 8.5, 'color': color, 'ha': align, 'va': 'center'}
  axes.text(x, y, text, **options)
