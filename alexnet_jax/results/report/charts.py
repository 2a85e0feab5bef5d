"""Charts as inline SVG, coloured by the page's style sheet so that they suit light and dark."""

import html
import math
from collections.abc import Sequence

from alexnet_jax.results.report.comparison import Row

Points = Sequence[tuple[float, float]]
COLOURS = 8  # classes c0 to c7 of the style sheet
_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40


def curves(
  lines: Sequence[tuple[str, int, Points, list[Points]]], level: float | None = None
) -> str:
  """Errors against epochs.

  Args:
    lines: (name, number of its colour, mean curve, curves of single seeds); values are fractions.
    level: a fraction to mark with a rule.
  """
  everything = [point for _, _, mean, seeds in lines for curve in (mean, *seeds) for point in curve]
  if not everything:
    return '<p class="faint">No evaluations on record.</p>'
  last = max(x for x, _ in everything)
  top = min(max(y for _, y in everything) * 1.05, 1.0) or 1.0
  step = _step(100 * top, 5)

  def place(point: tuple[float, float]) -> str:
    x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / (last or 1)
    y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(point[1], top) / top
    return f'{x:.1f},{y:.1f}'

  parts = []
  for i in range(int(100 * top / step) + 1):
    y = float(place((0, i * step / 100)).partition(',')[2])
    parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{i * step:g}</text>')
  every = _step(last, 7)
  for i in range(int(last / every + 1e-9) + 1):
    x = place((i * every, 0)).partition(',')[0]
    parts.append(f'<text x="{x}" y="{_HEIGHT - 20}" text-anchor="middle">{i * every:g}</text>')
  parts.append(
    f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">epoch</text>'
    f'<text x="4" y="{_HEIGHT - 4}">error, %</text>'
  )
  if level is not None and level < top:
    y = place((0, level)).partition(',')[2]
    parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
  for name, number, mean, seeds in lines:
    for curve in seeds if len(seeds) > 1 else ():
      points = ' '.join(map(place, curve))
      parts.append(f'<polyline class="thin c{number % COLOURS}" points="{points}"/>')
    dash = ' dashed' if number >= COLOURS else ''
    points = ' '.join(map(place, mean))
    parts.append(
      f'<polyline class="c{number % COLOURS}{dash}" points="{points}">'
      f'<title>{html.escape(name)}</title></polyline>'
    )
  return _svg(_HEIGHT, parts, 'error against epochs')


def forest(rows: Sequence[Row]) -> str:
  """The differences of the top-1 error with their intervals, published ones as hollow marks."""
  shown = [(i, row) for i, row in enumerate(rows) if 'top1_error' in row.differences]
  values = [0.0]
  for _, row in shown:
    change = row.differences['top1_error']
    values += [change.mean, *(change.over_images or ())]
    values += change.over_seeds or ()
    values += [row.published[0]] if row.published[0] is not None else []
  # One wide interval of two seeds must not squeeze all the others: it is cut at the edge.
  inner = [abs(row.differences['top1_error'].mean) for _, row in shown]
  inner += [abs(row.published[0] or 0) for _, row in shown]
  reach = min(max(map(abs, values)), 3 * max(inner, default=0.01) or 0.01) * 1.1 or 0.01
  left, line, top = 8, 40, 8

  def place(value: float) -> float:
    return left + (_WIDTH - 2 * left) * (min(max(value / reach, -1), 1) + 1) / 2

  height = top + line * len(shown) + 40
  parts = []
  step = _step(200 * reach, 6)
  count = int(100 * reach / step)
  for i in range(-count, count + 1):
    x = place(i * step / 100)
    kind = 'axis' if i == 0 else 'rule'
    parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 38}"/>')
    sign = '+' if i > 0 else ''
    parts.append(
      f'<text x="{x:.1f}" y="{height - 20}" text-anchor="middle">{sign}{i * step:g}</text>'
    )
  parts.append(
    f'<text x="{_WIDTH / 2}" y="{height - 4}" text-anchor="middle">'
    'better ← points of top-1 error → worse</text>'
  )
  for i, (number, row) in enumerate(shown):
    y, change = top + line * i + 28, row.differences['top1_error']
    parts.append(f'<text class="name" x="{left}" y="{y - 12}">{html.escape(row.name)}</text>')
    for interval, kind in ((change.over_seeds, 'seeds'), (change.over_images, 'images')):
      if interval:
        ends = f'x1="{place(interval[0]):.1f}" x2="{place(interval[1]):.1f}"'
        parts.append(
          f'<line class="interval {kind} c{number % COLOURS}" {ends} y1="{y}" y2="{y}"/>'
        )
    parts.append(
      f'<circle class="dot c{number % COLOURS}" cx="{place(change.mean):.1f}" cy="{y}" r="5"/>'
    )
    if row.published[0] is not None:
      x = place(row.published[0])
      parts.append(
        f'<path class="published" d="M{x - 6:.1f} {y}l6 -6l6 6l-6 6z">'
        '<title>published</title></path>'
      )
  return _svg(height, parts, 'differences of the top-1 error')


def _step(span: float, parts: int) -> float:
  """1, 2 or 5 times a power of ten that cuts `span` into at most about `parts`."""
  raw = max(span, 1e-9) / parts
  power = 10 ** math.floor(math.log10(raw))
  return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _svg(height: float, parts: Sequence[str], label: str) -> str:
  return (
    f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">'
    + ''.join(parts)
    + '</svg></div>'
  )
