"""Charts of a report as inline SVG."""

import io
import re
from collections.abc import Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from alexnet_jax.sweep.comparison import ReportRow

Points = Sequence[tuple[float, float]]
COLORS = '#3d4852 #c2412d #2b6cb0 #2f855a #8a4fbf #b7791f #0f8b8d #d1477e'.split()  # of rows
_INK, _FAINT, _RULE = '#1f2933', '#5d6875', '#dde1e6'
_WIDTH, _LONGEST = 4.6, 54  # inches; characters of a name that fit into them


def curves(lines: Sequence[tuple[Points, Sequence[Points]]], level: float | None = None) -> Markup:
  """Errors against epochs: a strong mean curve per line over its thin curves of single seeds.

  Args:
    lines: (mean curve, curves of single seeds), the next color each; values are fractions.
    level: a fraction to mark with a dashed rule.
  """
  figure, axes = _axes(3.0)
  for number, (mean, seeds) in enumerate(lines):
    color, style = COLORS[number % len(COLORS)], '-' if number < len(COLORS) else '--'
    for curve in seeds if len(seeds) > 1 else ():
      _plot(axes, curve, color=color, linewidth=0.7, alpha=0.45)
    _plot(axes, mean, color=color, linewidth=1.8, linestyle=style)
  if level is not None:
    axes.axhline(100 * level, color=_FAINT, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
  axes.set_xlim(0)
  axes.set_ylim(0, min(axes.get_ylim()[1], 100))
  axes.set(xlabel='epoch', ylabel='error, %')
  return _svg(figure, 'error against epochs')


def forest(rows: Sequence[ReportRow]) -> Markup:
  """The differences of the top-1 error with their intervals, published ones as hollow marks.

  Each row has its name above its marks; no vertical line runs through the names.
  """
  shown = [(i, row) for i, row in enumerate(rows) if 'top1_error' in row.differences]
  figure, axes = _axes(0.6 + 0.5 * len(shown))
  # One wide interval of two seeds must not squeeze all the others: it is cut at the edge.
  inner = [abs(row.differences['top1_error'].mean) for _, row in shown]
  inner += [abs(row.published[0] or 0) for _, row in shown]
  values = [*inner]
  for _, row in shown:
    change = row.differences['top1_error']
    values += map(abs, (*(change.over_seeds or ()), *(change.over_images or ())))
  reach = 110 * min(max(values), 3 * max(inner) or 0.01) or 1.0
  axes.set(xlim=(-reach, reach), ylim=(len(shown) - 0.6, -0.6), yticks=[])
  axes.set_xlabel('better ← points of top-1 error → worse')
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:+g}' if value else '0')
  ticks = [tick for tick in axes.get_xticks() if abs(tick) <= reach]
  for y, (number, row) in enumerate(shown):
    change, color = row.differences['top1_error'], COLORS[number % len(COLORS)]
    name = row.name if len(row.name) <= _LONGEST else row.name[: _LONGEST - 1] + '…'
    axes.text(-reach, y - 0.33, name, color=_INK, fontsize=10, va='center', parse_math=False)
    axes.vlines(ticks, y - 0.12, y + 0.3, color=_RULE, linewidth=0.8)
    axes.vlines(0, y - 0.12, y + 0.3, color=_FAINT, linewidth=0.8)
    for interval, width, alpha in ((change.over_seeds, 6, 0.4), (change.over_images, 1.8, 1)):
      if interval:
        ends = [100 * end for end in interval]
        axes.plot(ends, (y + 0.09,) * 2, color=color, linewidth=width, alpha=alpha)
    mark = {'markersize': 7, 'markeredgewidth': 1.2, 'clip_on': False}
    axes.plot(100 * change.mean, y + 0.09, 'o', color=color, markeredgecolor='white', **mark)
    if row.published[0] is not None:
      x = 100 * row.published[0]
      axes.plot(x, y + 0.09, 'D', color='white', markeredgecolor=_INK, **mark | {'markersize': 6})
  return _svg(figure, 'differences of the top-1 error')


def _axes(height: float):
  figure = Figure(figsize=(_WIDTH, height), layout='constrained')
  axes = figure.add_subplot()
  axes.spines[:].set_visible(False)
  axes.grid(axis='y', color=_RULE, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, labelsize=10, labelcolor=_FAINT)
  for axis in (axes.xaxis, axes.yaxis):
    axis.label.set(color=_FAINT, size=10)
  return figure, axes


def _plot(axes, points: Points, **style) -> None:
  axes.plot([x for x, _ in points], [100 * y for _, y in points], **style)


def _svg(figure: Figure, label: str) -> Markup:
  """The figure as an <svg> element with text as text."""
  text = io.StringIO()
  settings = {'svg.fonttype': 'none', 'svg.hashsalt': label, 'font.sans-serif': ['DejaVu Sans']}
  with matplotlib.rc_context(settings):
    metadata = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    figure.savefig(text, format='svg', transparent=True, metadata=metadata)
  svg = text.getvalue()
  svg = svg[svg.index('<svg') :].replace('<svg', f'<svg role="img" aria-label="{label}"', 1)
  return Markup(re.sub('<g id="[^"]*"', '<g', svg))  # each chart would have the same ids
