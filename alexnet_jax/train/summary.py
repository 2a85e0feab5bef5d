"""The end of a run: its predictions, its results and its figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.store import Store
from alexnet_jax.model import layers, nets
from alexnet_jax.results import figures, scores
from alexnet_jax.results.confusion import MOST_CLASSES, confusion_matrix
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.metrics import read_metrics
from alexnet_jax.run.predictions import (
  VIEW_NAMES,
  SplitProbabilities,
  results_prefix,
  write_predictions,
)
from alexnet_jax.terminal import aligned, duration
from alexnet_jax.train.devices import to_host
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.step import TrainState

_GRAY = 1e-3  # gray levels: of images without color, the variation across gray is rounding


def finish(
  experiment: Experiment,
  store: Store,
  state: TrainState,
  predictions: SplitProbabilities,
  workdir: Path,
) -> dict:
  """Writes the predictions, and returns the results for results.json.

  Args:
    experiment: the run.
    store: its data.
    state: the last one.
    predictions: of that state, with the final views.
    workdir: folder of the run, with its metrics.
  """
  config = experiment.config
  views = config.eval.final_views
  write_predictions(RunFolder(workdir).predictions('last', views), predictions)
  records = read_metrics(workdir)
  last = [r for r in records if 'eval/top1_error' in r][-1]
  results = {name: value for name, value in last.items() if name.startswith('eval/')}
  if views != config.eval.views:
    name = results_prefix(views)
    final = scores.errors(predictions.probabilities, predictions.label)
    results.update({f'{name}/{key}': value for key, value in final.items()})
  names = store.class_names
  if len(names) <= MOST_CLASSES:
    rows = scores.worst_classes(predictions.probabilities, predictions.label, names, len(names))
    keys = ('class', 'images', 'top1_error', 'mostly_taken_for')
    results['classes'] = [dict(zip(keys, row, strict=True)) for row in rows]
  speeds = [r['images_per_second'] for r in records if 'images_per_second' in r]
  return results | {
    'views': config.eval.views,
    'evaluated_images': len(store.eval.labels),
    'epoch': experiment.calendar.epoch_of(int(state.step)),
    'steps': int(state.step),
    'seed': config.seed,
    'seconds': max((r.get('seconds', 0.0) for r in records), default=0.0),
    'images_per_second': float(np.median(speeds)) if speeds else None,
    'parameters': layers.count_parameters(experiment.table, experiment.view_shape),
  }


def summary(results: dict, workdir: Path) -> str:
  """The content of results.json, as far as it is there, as a table for people."""
  rows: list[tuple[str, ...]] = [
    ('', 'top-1 error', 'top-5 error', 'top-1 accuracy', 'top-5 accuracy', 'loss')
  ]
  for name in dict.fromkeys(key.split('/')[0] for key in results if key.endswith('/top1_error')):
    top1, top5 = results[f'{name}/top1_error'], results.get(f'{name}/top5_error')
    accuracies = [None if error is None else 1 - error for error in (top1, top5)]
    cells = ['-' if share is None else f'{share:.2%}' for share in (top1, top5, *accuracies)]
    loss = results.get(f'{name}/loss')
    rows.append((f'{name.replace("_", " "):<10}', *cells, '-' if loss is None else f'{loss:.4f}'))
  lines = aligned(rows) if len(rows) > 1 else []
  for name, title, text in (
    ('parameters', 'parameters', '{:,}'.format),
    ('epoch', 'epoch', '{:g}'.format),
    ('images_per_second', 'images/s', '{:,.1f}'.format),
    ('seconds', 'time', duration),
  ):
    if results.get(name) is not None:
      lines.append(f'{title:<12}{text(results[name])}')
  return '\n'.join([*lines, f'workdir     {workdir}', f'figures     {RunFolder(workdir).figures}'])


def class_table(rows: Sequence[tuple[str, int, float, str]]) -> str:
  """Formats `scores.worst_classes` as a table."""
  heading = ('class', 'images', 'top-1 error', 'mostly taken for')
  cells = [(name, f'{count:,}', f'{error:.2%}', other) for name, count, error, other in rows]
  return '\n'.join(aligned([heading, *cells], left=(0, 3)))


def draw_figures(
  experiment: Experiment,
  store: Store,
  state: TrainState,
  predictions: SplitProbabilities,
  workdir: Path,
) -> list[str]:
  """Draws the figures of a run; arguments as of `finish`.

  Returns:
    A line for each figure that failed: a run does not fail because of them.
  """
  name, failures = workdir.name, []
  net, first = nets.title(experiment.config.model), experiment.table[0].name

  def learning_curves(path: Path) -> None:
    figures.learning_curves(read_metrics(workdir), path, title=f'{name}: {net}')

  def first_layer_kernels(path: Path) -> None:
    # The towers of 2012: conv1 itself sees all colors, the grouping begins with conv2.
    groups = [row.groups for row in experiment.table if isinstance(row, layers.Conv)]
    kernel, note = _first_kernel(experiment, store, to_host(state.params)[first]['kernel'])
    title = f'{name}: kernels of {first}{note}'
    figures.filter_grid(kernel, path, towers=max(groups, default=1), title=title)

  def confusion(path: Path) -> None:
    counts = scores.confusion(predictions.probabilities, predictions.label)
    title = f'{name}: {VIEW_NAMES[experiment.config.eval.final_views]}'
    confusion_matrix(counts, store.class_names, path, title)

  drawn = [learning_curves, first_layer_kernels]
  if len(store.class_names) <= MOST_CLASSES:
    drawn.append(confusion)
  for draw in drawn:
    path = RunFolder(workdir).figure(draw.__name__)
    try:
      draw(path)
    except Exception as error:  # Matplotlib fails in many ways, and so do disks
      reason = ' '.join(str(error).split())[:200]
      failures.append(f'{path} is not drawn: {type(error).__name__}: {reason}')
  return failures


def _first_kernel(experiment: Experiment, store: Store, kernel: np.ndarray):
  """The first layer's kernel to draw, and an addition to the title.

  On gray images the three channels of a kernel get the same gradient: their differences stay the
  noise of the first step, and the response is that of their sum.
  """
  settings = experiment.config.input
  gray = store.color_stdevs[1] < _GRAY and experiment.weights is None
  if not gray or (settings.color_noise and settings.color_statistics == '2012'):
    return kernel, ''
  scale = experiment.recipe.preprocessing.scale  # of the channels, before the kernel
  return (kernel * scale[:, None]).sum(2, keepdims=True), ' on gray images'
