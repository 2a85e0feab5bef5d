"""Charts of a report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax.results import figures
from alexnet_jax.sweep.comparison import ReportRow

COLORS = '#3d4852 #c2412d #2b6cb0 #2f855a #8a4fbf #b7791f #0f8b8d #d1477e'.split()  # of rows
_LONGEST = 40  # characters of a row's name


def curves(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
  """Errors against epochs as PNG: for each row a thick mean curve over the thin ones of its seeds.

  Args:
    rows: for each row, for each seed, (epoch, error), (n, 2).
  """
  figure, axes = _axes(3.0)
  for number, seeds in enumerate(rows):
    color, style = COLORS[number % len(COLORS)], '-' if number < len(COLORS) else '--'
    # Of the points that all seeds have, which are at the same epochs.
    mean = np.mean([points[: min(map(len, seeds))] for points in seeds], axis=0)
    for points, width, alpha in [(each, 0.7, 0.45) for each in seeds] + [(mean, 1.8, 1.0)]:
      x, y = points.T
      (line,) = axes.plot(x, 100 * y, color=color, linewidth=width, alpha=alpha, linestyle=style)
      line.set_marker('o' if len(x) == 1 else '')
  axes.set_xlim(0)
  axes.set_ylim(0, min(axes.get_ylim()[1], 100))
  axes.set(xlabel='epoch', ylabel='error, %')
  return figures.png(figure)


def forest(rows: Sequence[ReportRow]) -> bytes:
  """Forest plot as PNG: differences of the top-1 error with intervals, and published ones."""
  shown = [(i, row) for i, row in enumerate(rows) if row.top1.difference is not None]
  figure, axes = _axes(0.7 + 0.35 * len(shown))
  marks = []
  for y, (number, row) in enumerate(shown):
    color = COLORS[number % len(COLORS)]
    for interval, width, alpha in ((row.top1.over_seeds, 6, 0.4), (row.top1.over_images, 1.8, 1)):
      if interval:
        ends = [100 * end for end in interval]
        axes.plot(ends, (y, y), color=color, linewidth=width, alpha=alpha)
    for value, mark, fill, edge in (
      (row.top1.difference, 'o', color, 'white'),
      (row.top1.published, 'D', 'white', figures.INK),
    ):
      if value is not None:
        marks.append(100 * value)
        axes.plot(100 * value, y, mark, color=fill, markeredgecolor=edge, zorder=3)
  # A single wide interval is cut at the edge, so that the others can be read.
  reach = min(max(map(abs, axes.get_xlim())), 3 * max(map(abs, marks)) or 1)
  axes.set(xlim=(-reach, reach), ylim=(len(shown) - 0.5, -0.5))
  names = [row.name if len(row.name) <= _LONGEST else row.name[:_LONGEST] + '…' for _, row in shown]
  axes.set_yticks(range(len(shown)), names, parse_math=False)
  axes.set_xlabel('better ← points of top-1 error → worse')
  axes.axvline(0, color=figures.FAINT, linewidth=0.8, zorder=1)
  return figures.png(figure)


def _axes(height: float):
  figure = Figure(figsize=(6.4, height), dpi=figures.DPI, layout='constrained')
  axes = figure.add_subplot()
  for each in (figure, axes):
    each.set_facecolor('none')  # the page inverts its charts in the dark
  figures.style_axes(axes)
  return figure, axes
