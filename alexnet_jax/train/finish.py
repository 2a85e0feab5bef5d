"""The end of a run: writes its predictions, results and figures."""

from pathlib import Path

import numpy as np

from alexnet_jax import files
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
from alexnet_jax.terminal import Console, aligned, duration
from alexnet_jax.train.devices import to_host
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.step import TrainState

_SHOWN_CLASSES = 20  # lines of the table of classes; results.json has all
_GRAY = 1e-3  # gray levels: of images without color, the variation across gray is rounding


def finish(
  experiment: Experiment,
  store: Store,
  state: TrainState,
  predictions: SplitProbabilities,
  workdir: Path,
  origin: dict,
  console: Console,
) -> dict:
  """Writes the predictions, results.json and the figures, and shows the results.

  Args:
    predictions: of the last state, over config.eval.final_views.
    origin: command, hardware and versions, for results.json.

  Returns:
    The content of results.json.
  """
  config, names = experiment.config, store.class_names
  views = config.eval.final_views
  folder = RunFolder(workdir)
  write_predictions(folder.predictions('last', views), predictions)
  records = read_metrics(workdir)
  last = [r for r in records if 'eval/top1_error' in r][-1]
  results = {name: value for name, value in last.items() if name.startswith('eval/')}
  if views != config.eval.views:
    final = scores.compute_metrics(predictions.probabilities, predictions.label)
    results |= {f'{results_prefix(views)}/{key}': value for key, value in final.items()}
  worst = []
  if len(names) <= MOST_CLASSES:
    worst = scores.worst_classes(predictions.probabilities, predictions.label, names, len(names))
    keys = ('class', 'images', 'top1_error', 'mostly_taken_for')
    results['classes'] = [dict(zip(keys, row, strict=True)) for row in worst]
  speeds = [r['images_per_second'] for r in records if 'images_per_second' in r]
  results |= {
    'views': config.eval.views,
    'evaluated_images': len(store.eval.labels),
    'epoch': experiment.calendar.epoch_of(int(state.step)),
    'steps': int(state.step),
    'seed': config.seed,
    'seconds': max((r.get('seconds', 0.0) for r in records), default=0.0),
    'images_per_second': float(np.median(speeds)) if speeds else None,
    'parameters': layers.count_parameters(experiment.table, experiment.view_shape),
    **origin,
  }
  files.write_json(folder.results, results)
  try:
    _draw_figures(experiment, store, state, predictions, folder)
  except Exception as error:  # Matplotlib fails in many ways, and so do disks; the run does not
    reason = ' '.join(str(error).split())[:200]
    console.message(f'warning: not all figures are drawn: {type(error).__name__}: {reason}')
  if worst:
    heading = ('class', 'images', 'top-1 error', 'mostly taken for')
    cells = [(name, f'{n:,}', f'{error:.2%}', other) for name, n, error, other in worst]
    table = aligned([heading, *cells[:_SHOWN_CLASSES]], left=(0, 3))
    console.message('\n'.join(table) + '\n')
  console.message(results_table(results, workdir))
  return results


def results_table(results: dict, workdir: Path) -> str:
  """The content of results.json as a table of text."""
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


def _draw_figures(
  experiment: Experiment,
  store: Store,
  state: TrainState,
  predictions: SplitProbabilities,
  folder: RunFolder,
) -> None:
  net, first = nets.title(experiment.config.model), experiment.table[0].name
  run = folder.path.name
  path = folder.figure('learning_curves')
  figures.learning_curves(read_metrics(folder.path), path, title=f'{run}: {net}')
  kernel, title = to_host(state.params)[first]['kernel'], f'{run}: kernels of {first}'
  if store.color_stdevs[1] < _GRAY:
    # The channels have the same gradient; their differences stay the noise of the first step.
    kernel = (kernel * experiment.recipe.preprocessing.scale[:, None]).sum(2, keepdims=True)
    title += ' on gray images'
  # The towers of 2012: conv1 itself sees all colors, the grouping begins with conv2.
  towers = max((row.groups for row in experiment.table if isinstance(row, layers.Conv)), default=1)
  figures.filter_grid(kernel, folder.figure('first_layer_kernels'), towers=towers, title=title)
  if len(store.class_names) <= MOST_CLASSES:
    counts = scores.confusion(predictions.probabilities, predictions.label)
    title = f'{run}: {VIEW_NAMES[experiment.config.eval.final_views]}'
    confusion_matrix(counts, store.class_names, folder.figure('confusion'), title)
