"""The confusion matrix as a picture."""

import os
from collections.abc import Sequence

import numpy as np

from alexnet_jax.results import fonts
from alexnet_jax.results.figures import DPI, FAINT, INK, save_png

MOST_CLASSES = 100  # beyond that there is no room for names
_NUMBERS = 20  # classes up to which every cell has its number


def confusion_matrix(
  counts: np.ndarray, classes: Sequence[str], path: str | os.PathLike, title: str
) -> None:
  """Writes `confusion_figure` to `path` as PNG."""
  save_png(confusion_figure(counts, classes, title), path)


def confusion_figure(counts: np.ndarray, classes: Sequence[str], title: str):
  """Draws the confusion matrix: a row for each true class, a column for each predicted one.

  A cell is colored by its share of the row: blue on the diagonal; elsewhere red, by the square root
  of the share, so that rare mistakes are seen.

  Args:
    counts: integers (classes, classes), see `scores.confusion`.
    classes: their names.
    title: a line above.

  Returns:
    A Matplotlib figure.
  """
  from matplotlib.colors import LinearSegmentedColormap
  from matplotlib.figure import Figure

  count = len(classes)
  names = [_tick(number, name) for number, name in enumerate(classes)]
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  cell = max(min(0.5, 9 / count), 0.13)  # inches
  size = min(9.0, 72 * cell * 0.75)  # points
  border = 0.3 + max(map(fonts.width, names)) * size * 0.58 / 72
  side = cell * count
  width, height = max(border + side + 0.4, 4.0), border + side + 1.0
  figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
  box = (border / width, 0.4 / height, side / width, side / height)
  axes = figure.add_axes(box)
  wrong = LinearSegmentedColormap.from_list('wrong', ('#ffffff', '#e7907f', '#a32f1c'))
  right = LinearSegmentedColormap.from_list('right', ('#ffffff', '#8fb4dc', '#2b6cb0'))
  diagonal = np.eye(count, dtype=bool)
  axes.imshow(
    np.where(diagonal[..., None], right(shares), wrong(np.sqrt(shares))), interpolation='nearest'
  )
  if count <= _NUMBERS:
    for row, column in np.argwhere(counts > 0):
      dark = shares[row, column] > 0.6
      axes.text(
        column,
        row,
        f'{counts[row, column]:,}',
        ha='center',
        va='center',
        fontsize=size * 0.85,
        color='white' if dark else INK,
      )
  upright = border - 0.3 > cell
  style = fonts.label(''.join(names)) | {'fontsize': size}
  del style['s']
  axes.set_xticks(range(count), names, rotation=90 * upright, **style)
  axes.set_yticks(range(count), names, **style)
  axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=4)
  axes.tick_params(axis='both', labelcolor=INK)
  for spine in axes.spines.values():
    spine.set_color('#dde1e6')
  figure.text(0.2 / width, 1 - 0.3 / height, **fonts.label(title), fontsize=12, color=INK)
  axes.set_xlabel('predicted class; a row for each true class', fontsize=8.5, color=FAINT)
  return figure


def _tick(number: int, name: str) -> str:
  """A name as it can be drawn; with the number of its class where letters are lost."""
  shown = fonts.label(name)['s']
  return fonts.shortened(shown if shown == name else f'{number}: {shown}', 24)
