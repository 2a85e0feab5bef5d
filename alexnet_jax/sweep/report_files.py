"""A report on runs: report.md, report.csv and report.html, a page that needs no other file."""

import collections
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet_jax import files
from alexnet_jax.model.ablations import ABLATIONS
from alexnet_jax.results import html_page
from alexnet_jax.results.html_page import data_uri
from alexnet_jax.results.scores import TOP_K
from alexnet_jax.sweep import charts
from alexnet_jax.sweep.comparison import Interval, ReportRow, Statistics, compare_runs
from alexnet_jax.sweep.finished import FinishedRun, find_finished_runs

EXPLANATION = (
  'Errors are those of the final evaluation: mean ± standard deviation over seeds. Differences are'
  ' to the reference row, paired by seed, with 95 % intervals over seeds (Student’s t) and over'
  ' images (bootstrap). Published differences are of ImageNet with ten views; on other data only'
  ' their sign is compared. Epochs to 25 % are those until the training error, with augmentation'
  ' and dropout, has fallen to 25 %, by seed, as in the paper’s Figure 1: there tanh takes six'
  ' times as many as ReLU, each with its own best learning rate.'
)
_LEVEL = 0.25  # training error


def write_report(folders: Sequence[Path], out: Path, command: str) -> str:
  """Writes the report on all finished runs in `folders` into `out`; returns its Markdown.

  Args:
    folders: of runs or of sweeps.
    out: folder of the report.
    command: how the report was asked for, shown on the page.

  Raises:
    UserError: no finished run, a damaged one, or `out` cannot be written.
  """
  runs, unfinished = find_finished_runs(folders)
  rows = compare_runs(runs)
  text = markdown(rows, unfinished)
  with files.one_line_error(f'--out={out}'):
    files.write(out / 'report.md', text)
    files.write(out / 'report.csv', _csv(rows))
    files.write(out / 'report.html', _html(rows, unfinished, command))
  return text


def markdown(rows: Sequence[ReportRow], unfinished: Sequence[Path]) -> str:
  """The comparison without charts."""
  heading, *lines = _main_table(rows)
  lines = [[cell.replace('|', '\\|') for cell in line] for line in lines]
  marks = ['---'] + ['--:'] * (len(heading) - 1)
  text = f'# Ablations\n\n{EXPLANATION}\n\n'
  text += ''.join(f'| {" | ".join(line)} |\n' for line in (heading, marks, *lines))
  if unfinished:
    text += f'\nLeft out, not finished: {", ".join(f"`{path}`" for path in unfinished)}\n'
  return text


def _main_table(rows: Sequence[ReportRow]) -> list[list[str]]:
  """The comparison as cells by line, the heading first."""
  metrics = [m for m in TOP_K if any(row.statistics[m].mean is not None for row in rows)]
  errors = [f'top-{TOP_K[metric]} error, %' for metric in metrics]
  heading = ['', 'seeds', *errors, 'epochs to 25 %', 'difference, points', 'over seeds']
  table = [[*heading, 'over images', 'published', 'verdict']]
  for row in rows:
    compared = row.top1.difference is not None
    published = [each.published for each in row.statistics.values() if each.published is not None]
    table.append(
      [
        row.name,
        str(len(row.runs)),
        *(_error(row.statistics[metric]) for metric in metrics),
        ', '.join(_epochs(row)),
        _points(row.top1.difference) if compared else '',
        _interval(row.top1.over_seeds) if compared else '',
        _interval(row.top1.over_images) if compared else '',
        ' / '.join(map(_points, published)),
        row.verdict,
      ]
    )
  return table


def _error(error: Statistics) -> str:
  if error.mean is None:
    return '-'
  deviation = '' if error.deviation is None else f' ± {100 * error.deviation:.2f}'
  return f'{100 * error.mean:.2f}{deviation}'


def _points(share: float | None) -> str:
  return '' if share is None else f'{100 * share:+.2f}'


def _interval(interval: Interval | None) -> str:
  return ' to '.join(map(_points, interval)) if interval else '-'


def _epochs(row: ReportRow) -> list[str]:
  epochs = [run.epochs_to(_LEVEL) for run in row.runs]
  return ['-' if each is None else f'{each:.1f}' for each in epochs]


def _csv(rows: Sequence[ReportRow]) -> str:
  """One line a row: its `Statistics`, which are fractions, by metric."""
  lines = []
  for row in rows:
    line: dict[str, Any] = {'row': row.name, 'reference': row.reference}
    line['seeds'] = ' '.join(str(run.seed) for run in row.runs)
    for metric, error in row.statistics.items():
      for name, value in dataclasses.asdict(error).items():
        if name.startswith('over_'):
          low, high = value or (None, None)
          line |= {f'{metric}_{name}_low': low, f'{metric}_{name}_high': high}
        else:
          line[f'{metric}_{name}'] = value
    lines.append(line | {'verdict': row.verdict, 'epochs_to_25_percent': ' '.join(_epochs(row))})
  text = io.StringIO()
  writer = csv.DictWriter(text, lines[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  return text.getvalue()


def _html(rows: Sequence[ReportRow], unfinished: Sequence[Path], command: str) -> str:
  config = rows[0].runs[0].config
  data = config['data']
  name = {'tfds': data['name'], 'folder': Path(data['dir']).name}.get(data['source'])
  compared = any(row.top1.difference is not None for row in rows)
  return html_page.render(
    'sweep/report.html.j2',
    title=f'{config["model"]["net"]} on {name or data["source"]}',
    command=command,
    rows=rows,
    explanation=EXPLANATION,
    main_table=_main_table(rows),
    ablations=ABLATIONS,
    unfinished=unfinished,
    forest=data_uri(charts.forest(rows)) if compared else '',
    validation=data_uri(
      charts.curves([[run.validation_errors for run in row.runs] for row in rows])
    ),
    training=data_uri(charts.curves([[run.training_errors for run in row.runs] for row in rows])),
    conditions=collections.Counter(_conditions(run) for row in rows for run in row.runs),
    colors=charts.COLORS,
  )


def _conditions(run: FinishedRun) -> str:
  """Versions and hardware of a run."""
  names = ('hardware', 'processor', 'cores', 'processes', 'python')
  used = {name: run.results[name] for name in names if name in run.results}
  used |= run.results.get('versions', {})
  return ', '.join(f'{name} {value}' for name, value in used.items())
