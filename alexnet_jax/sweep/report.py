"""A report on runs: report.md, report.csv and report.html, a page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.data import preparation, store
from alexnet_jax.data.sources import IN_MEMORY
from alexnet_jax.errors import UserError
from alexnet_jax.results import confusion, figures, scores
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.sweep import charts, comparison, finished, relu_vs_tanh, tables
from alexnet_jax.sweep.comparison import ReportRow
from alexnet_jax.sweep.finished import FinishedRun


def write(folders: Sequence[Path], out: Path, command: str) -> str:
  """Writes the report on all finished runs in `folders` into `out`; returns its Markdown.

  Args:
    folders: of runs or of sweeps.
    out: folder of the report.
    command: how the report was asked for, shown on the page.

  Raises:
    UserError: no finished run, a damaged one, or `out` cannot be written.
  """
  runs, unfinished = finished.find_finished_runs(folders)
  rows = comparison.rows(runs)
  text = tables.markdown(rows, unfinished)
  try:
    files.write_text(out / 'report.md', text)
    files.write_text(out / 'report.csv', tables.csv_text(rows))
    files.write_text(out / 'report.html', html_page(rows, unfinished, command))
  except OSError as error:
    raise UserError(f'{out} cannot be written ({error.strerror}): choose another --out') from None
  return text


def html_page(rows: Sequence[ReportRow], unfinished: Sequence[Path], command: str) -> str:
  """The page, for wide and narrow screens; arguments as of `tables.markdown` and `write`."""
  config = rows[0].runs[0].config
  data = config['data']
  name = {'tfds': data['name'], 'folder': Path(data['dir']).name}.get(data['source'])
  speeds = relu_vs_tanh.speeds(rows)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('alexnet_jax', 'sweep'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template('report.html.j2').render(
    title=f'{config["model"]["net"]} on {name or data["source"]}',
    command=command,
    rows=rows,
    details=[_details(row) for row in rows],
    unfinished=unfinished,
    forest=charts.forest(rows) if any('top1_error' in row.differences for row in rows) else '',
    validation=_curves(rows, _validation_errors),
    training=_curves(rows, _training_errors, relu_vs_tanh.LEVEL if speeds else None),
    speeds=speeds,
    conditions=_conditions([run for row in rows for run in row.runs]),
    tables=tables,
    relu_vs_tanh=relu_vs_tanh,
    colors=charts.COLORS,
  )


def _curves(rows: Sequence[ReportRow], errors_of, level: float | None = None) -> str:
  """A chart of `errors_of` each run; '' without a point."""
  lines = []
  for row in rows:
    seeds = [errors_of(run) for run in row.runs]
    # As far as all of them go: they have points at the same epochs.
    points = zip(*seeds, strict=False)
    mean = [(at[0][0], float(np.mean([error for _, error in at]))) for at in points]
    lines.append((mean, seeds))
  return charts.curves(lines, level) if any(any(seeds) for _, seeds in lines) else ''


def _validation_errors(run: FinishedRun) -> charts.Points:
  return [(r['epoch'], r['eval/top1_error']) for r in run.record if 'eval/top1_error' in r]


def _training_errors(run: FinishedRun) -> charts.Points:
  return relu_vs_tanh.training_errors(run.record)


def _details(row: ReportRow) -> Mapping[str, Any]:
  """What the template shows of a row; filters and mistakes are those of its first run."""
  run = row.runs[0]
  filters = RunFolder(run.workdir).figure('first_layer_kernels')
  found = {
    'changes': [[field, str(old), str(new)] for field, (old, new) in row.changes.items()],
    'filters': _uri(filters.read_bytes()) if filters.exists() else '',
    'confusion': '',
    'confused': None,
  }
  predicted = [run for run in row.runs if run.probabilities is not None]
  if not predicted:
    return found
  counts = sum(scores.confusion(run.probabilities, run.label) for run in predicted)
  images = held_out(run)
  names = images.class_names if images else tuple(map(str, range(len(counts))))
  if len(counts) <= confusion.MOST_CLASSES:
    figure = confusion.confusion_figure(counts, names, row.name)
    found['confusion'] = _uri(figures.png(figure))
  found['confused'] = [[names[i], names[j], times] for i, j, times in most_confused(counts)]
  found['mistakes'] = [
    [
      _picture(images.eval.images[i], f'validation image {i}') if images else str(i),
      names[run.label[i]],
      names[run.probabilities[i].argmax()],
      f'{run.probabilities[i].max():.0%}',
    ]
    for i in surest_mistakes(run)
  ]
  return found


def most_confused(counts: np.ndarray, most: int = 12) -> list[tuple[int, int, int]]:
  """(label, answer, times) of the pairs of classes that are confused most often."""
  wrong = counts * (1 - np.eye(len(counts), dtype=int))
  order = np.argsort(-wrong, axis=None, kind='stable')[:most]
  pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
  return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def surest_mistakes(run: FinishedRun, most: int = 12) -> Sequence[int]:
  """Numbers of the wrongly answered validation images, those of highest probability first."""
  if run.probabilities is None:
    return []
  wrong = np.flatnonzero(run.probabilities.argmax(1) != run.label)
  return wrong[np.argsort(-run.probabilities[wrong].max(1), kind='stable')[:most]]


def held_out(run: FinishedRun) -> store.Store | None:
  """The store that a run was evaluated on, if it is there and holds the same labels.

  Nothing is prepared for the sake of a report, but for what takes no time.
  """
  data = configs.from_json(run.config).data
  try:
    if data.source in IN_MEMORY:
      found = preparation.prepare_store(data)
    else:
      found = store.open_store(preparation.store_path(data))
  except UserError:
    return None
  same = run.label is not None and np.array_equal(found.eval.labels, run.label)
  return found if same else None


def _conditions(runs: Sequence[FinishedRun]) -> tuple[list[str], list[list[str]]]:
  """Versions and hardware, each distinct set with the number of its runs, as heading and cells."""
  facts = ('hardware', 'processor', 'cores', 'processes', 'python')
  counts: dict[tuple, int] = {}
  for run in runs:
    known = run.environment or run.results
    used = {fact: known[fact] for fact in facts if fact in known} | (known.get('versions') or {})
    key = tuple((name, str(value)) for name, value in used.items())
    counts[key] = counts.get(key, 0) + 1
  names = dict.fromkeys(name for key in counts for name, _ in key)
  cells = [[name, *(dict(key).get(name, '-') for key in counts)] for name in names]
  return ['', *(f'{count} run{"s" * (count > 1)}' for count in counts.values())], cells


def _picture(pixels: np.ndarray, alt: str) -> Markup:
  png = io.BytesIO()
  Image.fromarray(np.asarray(pixels)).save(png, 'PNG')
  return Markup('<img alt="{}" src="{}">').format(alt, _uri(png.getvalue()))


def _uri(png: bytes) -> str:
  return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')
