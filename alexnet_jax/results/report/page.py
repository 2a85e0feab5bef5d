"""A report as one HTML file that needs no other: light or dark, wide or narrow."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.results.report import charts, mistakes, relu_vs_tanh, tables
from alexnet_jax.results.report.comparison import Row
from alexnet_jax.results.report.runs import Run
from alexnet_jax.results.report.style import STYLE

_FEW_CLASSES = 20  # up to here a confusion matrix can be read


def html_page(rows: Sequence[Row], unfinished: Sequence[Path], command: str) -> str:
  """The page as text.

  Args:
    rows: as `comparison.rows` gives them.
    unfinished: folders that were left out.
    command: how the report was made.
  """
  config = rows[0].runs[0].config
  count = sum(len(row.runs) for row in rows)
  title = f'{config["model"]["net"]} on {_data_name(config)}'
  left_out = (
    f'<p>Left out, not finished: {_text(", ".join(map(str, unfinished)))}</p>' if unfinished else ''
  )
  body = [
    f'<header><h1>{_text(title)}</h1><p class="faint">{count} runs in {len(rows)} rows, made by'
    f' <code>{_text(command)}</code></p></header>',
    f'<section><h2>Differences</h2><p>{_text(tables.EXPLANATION)}</p>{_main_table(rows)}{left_out}'
    + (charts.forest(rows) + _FOREST_NOTE if any(row.differences for row in rows) else '')
    + '</section>',
    _curves(rows),
    _relu_vs_tanh(rows),
    '<section><h2>Row by row</h2>' + ''.join(_row(row, i) for i, row in enumerate(rows)),
    '</section>',
    *(
      f'<section><h2>{_text(name)}</h2><p>Errors in percent.</p>{_table(heading, cells)}</section>'
      for name, heading, cells in tables.ilsvrc(rows)
    ),
    _conditions([run for row in rows for run in row.runs]),
  ]
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'<title>{_text(title)}</title><style>{STYLE}</style></head><body>\n'
    + '\n'.join(body)
    + '\n</body></html>\n'
  )


_FOREST_NOTE = (
  '<p class="faint">Dot: difference to the reference. Thick line: 95 % over seeds. Thin line: 95 %'
  ' over images. Hollow mark: published, on ImageNet. Intervals that reach an edge go on beyond it.'
  '</p>'
)


def _main_table(rows: Sequence[Row]) -> str:
  top5 = any('top5_error' in row.mean for row in rows)
  metrics = ['top1_error'] + ['top5_error'] * top5
  heading = ['', 'seeds', *('top-1 error, %', 'top-5 error, %')[: len(metrics)]]
  heading += ['difference, points', '95 % intervals', 'published']
  lines = []
  for i, row in enumerate(rows):
    change, intervals = row.differences.get('top1_error'), ''
    if change:
      known = (('seeds', change.over_seeds), ('images', change.over_images))
      intervals = '<br>'.join(
        f'<span class="faint">{kind}</span> {tables.interval_text(interval)}'
        for kind, interval in known
        if interval
      )
    kind = row.verdict.partition(':')[0].replace(' ', '-')
    lines.append(
      f'<tr><th>{_swatch(i)}{_text(row.name)}'
      + (f'<div class="verdict {kind}">{_text(row.verdict)}</div>' if row.verdict else '')
      + f'</th><td>{len(row.runs)}</td>'
      + ''.join(f'<td>{_text(tables.error_text(row, metric))}</td>' for metric in metrics)
      + f'<td><b>{tables.points(change.mean) if change else ""}</b></td><td>{intervals}</td>'
      + f'<td>{_text(tables.published_text(row))}</td></tr>'
    )
  return _framed(heading, lines)


def _curves(rows: Sequence[Row]) -> str:
  def chart(of, level=None):
    lines = []
    for i, row in enumerate(rows):
      seeds = [of(run) for run in row.runs]
      lines.append((row.name, i, _mean(seeds), seeds))
    return charts.curves(lines, level)

  legend = ''.join(f'<li>{_swatch(i)}{_text(row.name)}</li>' for i, row in enumerate(rows))
  level = relu_vs_tanh.LEVEL if relu_vs_tanh.speeds(rows) else None
  training = chart(lambda run: relu_vs_tanh.training_errors(run.record), level)
  return (
    f'<section><h2>Curves</h2><ul class="legend">{legend}</ul><div class="pair">'
    f'<figure><figcaption>Validation, top-1 error</figcaption>{chart(_validation)}</figure>'
    '<figure><figcaption>Training, top-1 error of the last epoch, as trained (augmented, with'
    f' dropout)</figcaption>{training}</figure></div>'
    '<p class="faint">Strong: mean over seeds. Thin: single seeds.</p></section>'
  )


def _validation(run: Run) -> list[tuple[float, float]]:
  return [(r['epoch'], r['eval/top1_error']) for r in run.record if 'eval/top1_error' in r]


def _mean(curves: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
  """The mean of curves, as far as all of them go; they have points at the same epochs."""
  return [
    (points[0][0], float(np.mean([y for _, y in points]))) for points in zip(*curves, strict=False)
  ]


def _relu_vs_tanh(rows: Sequence[Row]) -> str:
  speeds = relu_vs_tanh.speeds(rows)
  if not speeds:
    return ''
  return (
    '<section><h2>ReLU against tanh (paper, Figure 1)</h2>'
    f'<p><strong>{_text(relu_vs_tanh.verdict(speeds))}.</strong> The training error is that of the'
    ' last epoch, on views as trained on; the fastest learning rate of each unit counts.</p>'
    + _table(*tables.speeds_table(speeds))
    + '</section>'
  )


def _row(row: Row, number: int) -> str:
  """What a row changed, what was published of it, its filters, confusions and mistakes."""
  parts = []
  if source := tables.claim(row):
    parts.append(f'<p>Published: {_text(source)}</p>')
  if row.changes:
    changes = [[field, str(old), str(new)] for field, (old, new) in row.changes.items()]
    parts.append(_table(['field', 'base', 'here'], changes))
  filters = row.runs[0].workdir / 'figures' / 'first_layer_kernels.png'
  if filters.exists():
    parts.append(
      f'<figure><figcaption>First layer, seed {row.runs[0].seed}</figcaption>'
      f'<img class="filters" alt="kernels of the first layer" src="{_uri(filters.read_bytes())}">'
      '</figure>'
    )
  store = mistakes.held_out(row.runs[0])
  matrix = mistakes.confusion(row.runs)
  if matrix is not None:
    names = store.class_names if store else tuple(map(str, range(len(matrix))))
    parts += [_confusion(matrix, names), _surest(row.runs[0], store, names)]
  else:
    parts.append('<p class="faint">No saved predictions.</p>')
  opened = ' open' if number == 0 else ''
  return (
    f'<details{opened}><summary>{_swatch(number)}{_text(row.name)}</summary>{"".join(parts)}'
    '</details>'
  )


def _confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
  if len(matrix) > _FEW_CLASSES:
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    places = np.argsort(-wrong, axis=None, kind='stable')[:12]
    most = [np.unravel_index(place, wrong.shape) for place in places]
    cells = [[names[i], names[j], f'{wrong[i, j]:,}'] for i, j in most if wrong[i, j]]
    return '<h3>Taken for another</h3>' + _table(['label', 'answer', 'times'], cells)
  lines = []
  for i, counts in enumerate(matrix):
    total = max(counts.sum(), 1)
    cells = ''.join(
      f'<td class="{"hit" if i == j else "miss"}" style="--p:{100 * count / total:.0f}%">'
      f'{count or ""}</td>'
      for j, count in enumerate(counts)
    )
    lines.append(f'<tr><th>{_text(names[i])}</th>{cells}</tr>')
  heading = ['label \\ answer', *names]
  return '<h3>Confusion matrix, all seeds</h3>' + _framed(heading, lines, 'confusion')


def _surest(run: Run, store, names: Sequence[str]) -> str:
  cards = []
  for mistake in mistakes.surest(run):
    picture = ''
    if store:
      pixels = io.BytesIO()
      Image.fromarray(np.asarray(store.eval.images[mistake.image])).save(pixels, 'PNG')
      picture = f'<img alt="held-out image {mistake.image}" src="{_uri(pixels.getvalue())}">'
    cards.append(
      f'<li>{picture}<span><b>{_text(names[mistake.answer])}</b> {mistake.probability:.0%}<br>'
      f'is {_text(names[mistake.label])}</span></li>'
    )
  if not cards:
    return '<p class="faint">No mistakes.</p>'
  heading = f'<h3>Surest mistakes, seed {run.seed}</h3>'
  return f'{heading}<ul class="mistakes">{"".join(cards)}</ul>'


def _conditions(runs: Sequence[Run]) -> str:
  """Versions and hardware, each distinct set with the runs it was used for."""
  facts = ('hardware', 'processor', 'cores', 'processes', 'python')
  lines: dict[tuple, int] = {}
  for run in runs:
    environment = run.environment or run.results
    versions = environment.get('versions') or {}
    known = [(fact, environment[fact]) for fact in facts if fact in environment]
    key = tuple((str(name), str(value)) for name, value in (*known, *versions.items()))
    lines[key] = lines.get(key, 0) + 1
  names = list(dict.fromkeys(name for key in lines for name, _ in key))
  cells = [[name, *(dict(key).get(name, '-') for key in lines)] for name in names]
  heading = ['', *(f'{count} run{"s" * (count > 1)}' for count in lines.values())]
  return f'<section><h2>Versions and hardware</h2>{_table(heading, cells)}</section>'


def _data_name(config: dict) -> str:
  data = config['data']
  name = {'tfds': data['name'], 'folder': Path(data['dir']).name}.get(data['source'])
  return name or data['source']


def _table(heading: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
  lines = [
    f'<tr><th>{_text(first)}</th>' + ''.join(f'<td>{_text(cell)}</td>' for cell in others) + '</tr>'
    for first, *others in cells
  ]
  return _framed(heading, lines)


def _framed(heading: Sequence[str], lines: Sequence[str], kind: str = '') -> str:
  top = ''.join(f'<th>{_text(cell)}</th>' for cell in heading)
  return (
    f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )


def _swatch(number: int) -> str:
  return f'<i class="swatch c{number % charts.COLOURS}"></i>'


def _uri(png: bytes) -> str:
  return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')


def _text(text: str) -> str:
  return html.escape(text)
