"""The paper's Figure 4: pictures with their predictions, and with their nearest neighbors."""

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
_SIDE, _GAP, _MARGIN = 1.9, 0.35, 0.4  # inches
_CAPTION, _LINE = 0.3, 0.22  # heights of a line of text


def predictions(
  shown: Sequence[tuple[np.ndarray, ImagePrediction]], path: str | os.PathLike, title: str
) -> None:
  """Draws pictures with bars for their most probable classes, the true one in red (Figure 4 left).

  Args:
    shown: picture uint8 (S, S, 3) and its prediction; in rows of four.
    path: where to put the PNG.
    title: a line above.
  """
  bars = max(len(prediction.classes) for _, prediction in shown)
  height = _SIDE + _CAPTION + bars * _LINE
  page = _Page(len(shown), min(_COLUMNS, len(shown)), height, title)
  for place, (picture, each) in enumerate(shown):
    left, top = page.cell(place)
    page.picture(picture, left, top, _SIDE)
    color = INK if each.true_class else FAINT
    page.text(
      each.true_class or Path(each.name).name,
      left + _SIDE / 2,
      top + _SIDE + _CAPTION / 2,
      _SIDE,
      color,
      align='center',
    )
    top += _SIDE + _CAPTION
    for row, (name, share) in enumerate(zip(each.classes, each.probabilities, strict=True)):
      color = _TRUE if name == each.true_class else _BAR
      page.bar(left, top + row * _LINE, share * _SIDE, color)
      middle = top + (row + 0.46) * _LINE
      page.text(name, left + 0.05, middle, _SIDE - 0.45, INK)
      page.text(f'{100 * share:.0f}%', left + _SIDE, middle, 0.4, FAINT, align='right')
  save_png(page.figure, path)


def neighbors(
  queries: Sequence[tuple[np.ndarray, str]],
  found: Sequence[Sequence[tuple[np.ndarray, str]]],
  path: str | os.PathLike,
  title: str,
) -> None:
  """Draws each query and, to its right, its nearest pictures (Figure 4 right).

  Args:
    queries: (picture uint8 (S, S, 3), caption).
    found: for each query the same of its neighbors, nearest first.
    path: where to put the PNG.
    title: a line above.
  """
  columns = 1 + max(map(len, found))
  side, space = 1.3, 0.2
  page = _Page(len(queries) * columns, columns, side + _CAPTION, title, side, 0.12, space)
  for row, (query, others) in enumerate(zip(queries, found, strict=True)):
    for column, (picture, caption) in enumerate([query, *others]):
      left, top = page.cell(row * columns + column)
      left += space if column else 0
      page.picture(picture, left, top, side)
      page.text(
        caption, left + side / 2, top + side + 0.13, side, FAINT if column else INK, 'center'
      )
  save_png(page.figure, path)


class _Page:
  """A white page with cells in rows; lengths are inches from its upper left corner."""

  def __init__(self, cells, columns, height, title, width=_SIDE, gap=_GAP, extra=0.0):
    from matplotlib.figure import Figure

    self._columns, self._width, self._height, self._gap = columns, width, height, gap
    rows = math.ceil(cells / columns)
    self._top = _MARGIN + 0.45
    page_width = max(2 * _MARGIN + columns * width + (columns - 1) * gap + extra, 5.0)
    page_height = self._top + rows * height + (rows - 1) * gap + _MARGIN
    self._size = page_width, page_height
    self.figure = Figure(figsize=self._size, dpi=DPI, facecolor='white')
    self.text(title, _MARGIN, _MARGIN + 0.05, page_width - 2 * _MARGIN, INK, size=12)

  def cell(self, place: int) -> tuple[float, float]:
    row, column = divmod(place, self._columns)
    left = _MARGIN + column * (self._width + self._gap)
    return left, self._top + row * (self._height + self._gap)

  def _box(self, left, top, width, height) -> tuple[float, float, float, float]:
    across, down = self._size
    return left / across, 1 - (top + height) / down, width / across, height / down

  def picture(self, pixels, left, top, side) -> None:
    axes = self.figure.add_axes(self._box(left, top, side, side))
    # Small pictures stay squares of pixels; large ones are averaged down.
    small = len(pixels) <= 64
    axes.imshow(pixels, interpolation='nearest' if small else 'antialiased')
    axes.set_axis_off()

  def bar(self, left, top, length, color) -> None:
    from matplotlib.patches import Rectangle

    box = self._box(left, top, length, _LINE * 0.86)
    transform = self.figure.transFigure
    self.figure.add_artist(Rectangle(box[:2], *box[2:], color=color, lw=0, transform=transform))

  def text(self, text, left, middle, width, color, align='left', size=8.5) -> None:
    """Writes a line, cut where it would be longer than `width`."""
    x, y, _, _ = self._box(left, middle, 0, 0)
    most = max(int(width * 72 / (0.56 * size)), 3)
    style = text_style() | {'fontsize': size, 'color': color, 'ha': align, 'va': 'center'}
    self.figure.text(x, y, shortened(drawable(text), most), **style)
