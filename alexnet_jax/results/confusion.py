"""The confusion matrix as a figure."""

import os
from collections.abc import Sequence

import numpy as np

from alexnet_jax.results.figures import DPI, FAINT, INK, drawable, save_png, text_style
from alexnet_jax.terminal import shortened

MOST_CLASSES = 100  # beyond that names do not fit
_NUMBERS = 20  # classes up to which every cell has its number


def confusion_matrix(
  counts: np.ndarray, classes: Sequence[str], path: str | os.PathLike, title: str
) -> None:
  """Draws the confusion matrix: a row for each true class, a column for each predicted one.

  A cell is colored by its share of the row: blue on the diagonal; elsewhere red, by the square root
  of the share, so that rare mistakes are seen.

  Args:
    counts: integers (classes, classes), see `scores.confusion`.
    classes: their names.
    path: where to put the PNG.
    title: a line above.
  """
  from matplotlib import colormaps
  from matplotlib.figure import Figure

  count = len(classes)
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  cell = max(min(0.5, 9 / count), 0.13)  # inches
  size = min(9.0, 72 * cell * 0.75)  # points
  side = cell * count + 2
  figure = Figure(figsize=(side, side), dpi=DPI, facecolor='white')
  figure.set_layout_engine('constrained', w_pad=0.15, h_pad=0.15)
  axes = figure.add_subplot()
  right, wrong = colormaps['Blues'](0.8 * shares), colormaps['Reds'](0.8 * np.sqrt(shares))
  axes.imshow(np.where(np.eye(count, dtype=bool)[..., None], right, wrong), interpolation='nearest')
  for row, column in np.argwhere(counts > 0) if count <= _NUMBERS else ():
    color = 'white' if shares[row, column] > 0.6 else INK
    text = axes.text(column, row, f'{counts[row, column]:,}', ha='center', va='center')
    text.set(fontsize=size * 0.85, color=color)
  names = [shortened(drawable(name), 24) for name in classes]
  axes.set_xticks(range(count), names, rotation='vertical', fontsize=size, **text_style())
  axes.set_yticks(range(count), names, fontsize=size, **text_style())
  axes.tick_params(
    top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelcolor=INK
  )
  axes.spines[:].set_color('#dde1e6')
  axes.set_xlabel('predicted class; a row for each true class', fontsize=8.5, color=FAINT)
  figure.suptitle(drawable(title), x=0.02, ha='left', fontsize=12, color=INK, **text_style())
  save_png(figure, path)
