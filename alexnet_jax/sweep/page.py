"""A report on runs: report.md, report.csv and report.html, a page that needs no other file."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model import ablations
from alexnet_jax.results import html_page
from alexnet_jax.results.html_page import data_uri
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.sweep import charts
from alexnet_jax.sweep.comparison import Interval, ReportRow, compare_runs
from alexnet_jax.sweep.finished import METRICS, FinishedRun, find_finished_runs

Cells = list[list[str]]  # cells by line, the heading first
_EXPLANATION = (
  'Errors are of the final evaluation, mean ± standard deviation over seeds. A difference is that'
  ' to the reference, paired by seed; its first interval (95 %, Student’s t) is over seeds, its'
  ' second (95 %, bootstrap) over images. A published difference is of ImageNet with ten views: on'
  ' other data only its sign is compared. Epochs are those until the training error, as trained'
  ' (augmented, with dropout), has fallen to 25 %, by seed, as in the paper’s Figure 1: there tanh'
  ' takes six times those of ReLU, each with its own best learning rate.'
)
_PUBLISHED = ' Published of this net (paper, Table 2, ten views): top-1 error 40.7, top-5 18.2 %.'
_LEVEL = 0.25


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
  try:
    files.write(out / 'report.md', text)
    files.write(out / 'report.csv', csv_text(rows))
    files.write(out / 'report.html', _html(rows, unfinished, command))
  except OSError as error:
    raise UserError(f'{out} cannot be written ({error.strerror}): choose another --out') from None
  return text


def markdown(rows: Sequence[ReportRow], unfinished: Sequence[Path]) -> str:
  """The comparison without charts."""
  heading, *lines = main_table(rows)
  lines = [[cell.replace('|', '\\|') for cell in line] for line in lines]
  marks = ['---'] + ['--:'] * (len(heading) - 1)
  text = f'# Ablations\n\n{explanation(rows)}\n\n'
  text += ''.join(f'| {" | ".join(line)} |\n' for line in (heading, marks, *lines))
  if unfinished:
    text += f'\nLeft out, not finished: {", ".join(f"`{path}`" for path in unfinished)}\n'
  return text


def explanation(rows: Sequence[ReportRow]) -> str:
  """What the columns of `main_table` are."""
  config = rows[0].runs[0].config
  data, net = (config['data']['source'], config['data']['name']), config['model']['net']
  published = data == ('tfds', 'imagenet2012') and net == 'krizhevsky2012'
  return _EXPLANATION + _PUBLISHED * published


def main_table(rows: Sequence[ReportRow]) -> Cells:
  """The comparison as text."""
  errors = {'top1_error': 'top-1 error, %', 'top5_error': 'top-5 error, %'}
  errors = {
    k: text for k, text in errors.items() if any(f'{k}_mean' in row.figures for row in rows)
  }
  heading = ['', 'seeds', *errors.values(), 'epochs to 25 %', 'difference, points', 'over seeds']
  table = [[*heading, 'over images', 'published', 'claim']]
  for row in rows:
    change = row.figures.get('top1_error_difference')
    table.append(
      [
        row.name,
        str(len(row.runs)),
        *(_error(row, metric) for metric in errors),
        ', '.join(_epochs(row)),
        '' if change is None else _points(change),
        '' if change is None else _interval(row.interval('top1_error_seeds')),
        '' if change is None else _interval(row.interval('top1_error_images')),
        ' / '.join(
          _points(row.figures[f'{metric}_published'])
          for metric in METRICS
          if f'{metric}_published' in row.figures
        ),
        row.claim,
      ]
    )
  return table


def _error(row: ReportRow, metric: str) -> str:
  mean, deviation = (row.figures.get(f'{metric}_{name}') for name in ('mean', 'deviation'))
  if mean is None:
    return '-'
  return f'{100 * mean:.2f}' + ('' if deviation is None else f' ± {100 * deviation:.2f}')


def _points(share: float) -> str:
  return f'{100 * share:+.2f}'


def _interval(interval: Interval | None) -> str:
  return f'{_points(interval[0])} to {_points(interval[1])}' if interval else '-'


def _epochs(row: ReportRow) -> list[str]:
  epochs = [run.epochs_to(_LEVEL) for run in row.runs]
  return ['-' if each is None else f'{each:.1f}' for each in epochs]


def csv_text(rows: Sequence[ReportRow]) -> str:
  """One line a row: `ReportRow.figures`, which are fractions."""
  measures = ['mean', 'deviation', 'difference', 'pairs', 'seeds_low', 'seeds_high']
  measures += ['images_low', 'images_high', 'published']
  names = ['row', 'reference', 'seeds', *(f'{metric}_{m}' for metric in METRICS for m in measures)]
  text = io.StringIO()
  writer = csv.DictWriter(text, [*names, 'claim', 'epochs_to_25_percent'], lineterminator='\n')
  writer.writeheader()
  for row in rows:
    seeds = ' '.join(str(run.seed) for run in row.runs)
    words = {'row': row.name, 'reference': row.reference, 'seeds': seeds, 'claim': row.claim}
    writer.writerow(words | row.figures | {'epochs_to_25_percent': ' '.join(_epochs(row))})
  return text.getvalue()


def _html(rows: Sequence[ReportRow], unfinished: Sequence[Path], command: str) -> str:
  """The page, for wide and narrow screens; arguments as of `write_report` and `markdown`."""
  config = rows[0].runs[0].config
  data = config['data']
  name = {'tfds': data['name'], 'folder': Path(data['dir']).name}.get(data['source'])
  compared = any('top1_error_difference' in row.figures for row in rows)
  return html_page.render(
    'sweep/report.html.j2',
    title=f'{config["model"]["net"]} on {name or data["source"]}',
    command=command,
    rows=rows,
    explanation=explanation(rows),
    main_table=main_table(rows),
    details=[(row, _published(row), _changes(row), _figures(row.runs[0])) for row in rows],
    unfinished=unfinished,
    forest=data_uri(charts.forest(rows)) if compared else '',
    validation=data_uri(
      charts.curves([[run.validation_errors for run in row.runs] for row in rows])
    ),
    training=data_uri(charts.curves([[run.training_errors for run in row.runs] for row in rows])),
    conditions=_conditions([run for row in rows for run in row.runs]),
    colors=charts.COLORS,
  )


def _published(row: ReportRow) -> str:
  """What was published of a row's single ablation, in words."""
  return ablations.ABLATIONS[row.ablations[0]].source if len(row.ablations) == 1 else ''


def _changes(row: ReportRow) -> Cells:
  changed = [[field, str(old), str(new)] for field, (old, new) in row.changes.items()]
  return [['field', 'base', 'here'], *changed]


def _figures(run: FinishedRun) -> dict[str, str]:
  """Figures that the run has drawn, by caption."""
  captions = {'first_layer_kernels': 'First layer', 'confusion': 'Confusion matrix'}
  paths = {text: RunFolder(run.workdir).figure(name) for name, text in captions.items()}
  return {
    f'{text}, seed {run.seed}': data_uri(path.read_bytes())
    for text, path in paths.items()
    if path.exists()
  }


def _conditions(runs: Sequence[FinishedRun]) -> Cells:
  """Versions and hardware: a column for each distinct set, with the number of its runs."""
  facts = ('hardware', 'processor', 'cores', 'processes', 'python')
  counts: dict[tuple, int] = {}
  for run in runs:
    used = {fact: run.results[fact] for fact in facts if fact in run.results}
    used |= run.results.get('versions', {})
    key = tuple((name, str(value)) for name, value in used.items())
    counts[key] = counts.get(key, 0) + 1
  names = dict.fromkeys(name for key in counts for name, _ in key)
  heading = ['', *(f'{count} run{"s" * (count > 1)}' for count in counts.values())]
  return [heading, *([name, *(dict(key).get(name, '-') for key in counts)] for name in names)]
