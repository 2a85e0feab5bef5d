"""A report as Markdown and CSV, and the published tables of ILSVRC with a column of our own."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax.model import ablations
from alexnet_jax.sweep import relu_vs_tanh
from alexnet_jax.sweep.comparison import Interval, ReportRow
from alexnet_jax.sweep.finished import METRICS

# Paper, Table 1: ILSVRC-2010 test set; top-1 and top-5 error in percent.
_ILSVRC_2010 = (
  ('Sparse coding', '47.1', '28.2'),
  ('SIFT + FVs', '45.7', '25.7'),
  ('CNN', '37.5', '17.0'),
)
# Paper, Table 2: ILSVRC-2012; top-1 and top-5 on the validation set, top-5 on the test set; the net
# here that would be its row.
_ILSVRC_2012 = (
  ('SIFT + FVs', '-', '-', '26.2', None),
  ('1 CNN', '40.7', '18.2', '-', 'krizhevsky2012'),
  ('5 CNNs', '38.1', '16.4', '16.4', None),
  ('1 CNN*', '39.0', '16.6', '-', None),
  ('7 CNNs*', '36.7', '15.4', '15.3', None),
)
_VALIDATION_IMAGES = 50_000

EXPLANATION = (
  'Errors are of the final evaluation, mean ± standard deviation over seeds. A difference is that'
  ' to the reference, paired by seed; its first interval (95 %, Student’s t) is over seeds, its'
  ' second (95 %, bootstrap) over images. A published difference is of ImageNet with ten views: on'
  ' other data only its sign is compared.'
)


def markdown(rows: Sequence[ReportRow], unfinished: Sequence[Path]) -> str:
  """The whole report without pictures."""
  parts = [
    '# Ablations\n',
    EXPLANATION + '\n',
    _table(*main_table(rows)),
  ]
  if unfinished:
    parts.append(
      '\nLeft out, not finished: ' + ', '.join(f'`{path}`' for path in unfinished) + '\n'
    )
  if speeds := relu_vs_tanh.speeds(rows):
    parts += [
      '\n## ReLU against tanh\n',
      relu_vs_tanh.verdict(speeds) + '.\n',
      _table(*speeds_table(speeds)),
    ]
  for title, heading, cells in ilsvrc(rows):
    parts += [f'\n## {title}\n', 'Errors in percent.\n', _table(heading, cells)]
  return '\n'.join(parts) + '\n'


def main_table(rows: Sequence[ReportRow]) -> tuple[list[str], list[list[str]]]:
  """Heading and cells of the comparison, as text."""
  errors = {'top1_error': 'top-1 error, %', 'top5_error': 'top-5 error, %'}
  errors = {name: text for name, text in errors.items() if any(name in row.mean for row in rows)}
  heading = ['', 'seeds', *errors.values(), 'difference, points', 'over seeds', 'over images']
  heading += ['published', 'verdict']
  cells = []
  for row in rows:
    change = row.differences.get('top1_error')
    cells.append(
      [
        row.name,
        str(len(row.runs)),
        *(error_text(row, metric) for metric in errors),
        points(change.mean) if change else '',
        interval_text(change.over_seeds) if change else '',
        interval_text(change.over_images) if change else '',
        published_text(row),
        row.verdict,
      ]
    )
  return heading, cells


def error_text(row: ReportRow, metric: str) -> str:
  if metric not in row.mean:
    return '-'
  text = f'{100 * row.mean[metric]:.2f}'
  return text + (f' ± {100 * row.deviation[metric]:.2f}' if metric in row.deviation else '')


def points(share: float) -> str:
  return f'{100 * share:+.2f}'


def interval_text(interval: Interval | None) -> str:
  return f'{points(interval[0])} to {points(interval[1])}' if interval else '-'


def published_text(row: ReportRow) -> str:
  known = [points(value) for value in row.published if value is not None]
  return ' / '.join(known)


def csv_text(rows: Sequence[ReportRow]) -> str:
  """One line a row, numbers as fractions."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  measures = ['mean', 'deviation', 'difference', 'pairs', 'seeds_low', 'seeds_high']
  measures += ['images_low', 'images_high', 'published']
  writer.writerow(
    ['row', 'reference', 'seeds']
    + [f'{metric}_{measure}' for metric in METRICS for measure in measures]
    + ['verdict']
  )
  for row in rows:
    cells = [row.name, row.reference, ' '.join(str(run.seed) for run in row.runs)]
    for metric, published in zip(METRICS, row.published, strict=True):
      change = row.differences.get(metric)
      cells += [row.mean.get(metric), row.deviation.get(metric)]
      cells += [change.mean, change.pairs] if change else [None, None]
      cells += (change and change.over_seeds) or (None, None)
      cells += (change and change.over_images) or (None, None)
      cells.append(published)
    writer.writerow([*cells, row.verdict])
  return text.getvalue()


def ilsvrc(rows: Sequence[ReportRow]) -> list[tuple[str, list[str], list[list[str]]]]:
  """Tables 1 and 2 of the paper with what was measured here: (title, heading, cells)."""
  first = [[*line, 'not run' if 'CNN' in line[0] else '-'] for line in _ILSVRC_2010]
  second = []
  for name, *published, net in _ILSVRC_2012:
    measured = 'not run' if 'CNN' in name else '-'
    if ours := next((row for row in rows if net and _is_ilsvrc(row, net)), None):
      measured = f'{error_text(ours, "top1_error")} / {error_text(ours, "top5_error")}'
    second.append([name, *published, measured])
  return [
    ('ILSVRC-2010 test set (paper, Table 1)', ['', 'top-1', 'top-5', 'here'], first),
    (
      'ILSVRC-2012 (paper, Table 2)',
      ['', 'top-1 (val)', 'top-5 (val)', 'top-5 (test)', 'here (val)'],
      second,
    ),
  ]


def _is_ilsvrc(row: ReportRow, net: str) -> bool:
  config = row.runs[0].config
  return (
    not row.ablations
    and config['model']['net'] == net
    and not config['model']['ablations']
    and config['data']['source'] in ('tfds', 'folder')
    and config['data']['name'] == 'imagenet2012'
    and all(run.results.get('evaluated_images') == _VALIDATION_IMAGES for run in row.runs)
    and row.runs[0].views == 10
  )


def speeds_table(speeds: Sequence[relu_vs_tanh.Speed]) -> tuple[list[str], list[list[str]]]:
  cells = [
    [
      speed.unit,
      f'{speed.rate:g}',
      ', '.join('not reached' if e is None else f'{e:.1f}' for e in speed.epochs),
      '-' if speed.mean is None else f'{speed.mean:.1f}',
    ]
    for speed in speeds
  ]
  heading = ['unit', 'learning rate', f'epochs to {relu_vs_tanh.LEVEL:.0%}, by seed', 'mean']
  return heading, cells


def claim(row: ReportRow) -> str:
  """What was published of a row's single ablation, in words."""
  return ablations.ABLATIONS[row.ablations[0]].source if len(row.ablations) == 1 else ''


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  escaped = [[cell.replace('|', '\\|') for cell in line] for line in lines]
  marks = ['---'] + ['--:'] * (len(heading) - 1)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [heading, marks, *escaped])
