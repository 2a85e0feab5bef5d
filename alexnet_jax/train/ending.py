"""What a finished run leaves behind: predictions, figures and the record of its results."""

from pathlib import Path

import numpy as np

from alexnet_jax.data.store import Store
from alexnet_jax.model import layers, nets
from alexnet_jax.results import figures, scores
from alexnet_jax.results.confusion import MOST_CLASSES, confusion_matrix
from alexnet_jax.results.console import results_table
from alexnet_jax.results.metrics import read_metrics
from alexnet_jax.train.evaluation import VIEW_NAMES, Predictions, write_predictions
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.parallel import to_host
from alexnet_jax.train.step import TrainState


def finish(
  experiment: Experiment, store: Store, state: TrainState, predictions: Predictions, workdir: Path
) -> dict:
  """Draws the figures, writes the predictions and sums the run up.

  Args:
    experiment: the run.
    store: its data.
    state: the last one.
    predictions: with the run's final views.
    workdir: folder of the run, with its records.

  Returns:
    What results.json says of the run itself.
  """
  config = experiment.config
  views = config.eval.final_views
  records = read_metrics(workdir)
  last = [r for r in records if 'eval/top1_error' in r][-1]
  results = {name: value for name, value in last.items() if name.startswith('eval/')}
  if views != config.eval.views:
    name = VIEW_NAMES[views].replace(' ', '_')
    final = scores.errors(predictions.probabilities, predictions.label)
    results.update({f'{name}/{key}': value for key, value in final.items()})
  names = store.class_names
  if len(names) <= MOST_CLASSES:
    rows = scores.worst_classes(predictions.probabilities, predictions.label, names, len(names))
    keys = ('class', 'images', 'top1_error', 'mostly_taken_for')
    results['classes'] = [dict(zip(keys, row, strict=True)) for row in rows]
    counts = scores.confusion(predictions.probabilities, predictions.label)
    path = workdir / 'figures' / 'confusion.png'
    path.parent.mkdir(exist_ok=True)
    confusion_matrix(counts, names, path, f'{workdir.name}: {VIEW_NAMES[views]}')
  _draw(experiment, records, to_host(state.params), workdir)
  write_predictions(workdir / f'predictions-last-{views}.npz', predictions)
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
  """What results.json says, for people; the paths are those of today, wherever it was moved."""
  return results_table(results | {'workdir': workdir, 'figures': workdir / 'figures'})


def _draw(experiment: Experiment, records: list[dict], params: dict, workdir: Path) -> None:
  """Learning curves and the first layer's kernels, in WORKDIR/figures."""
  folder = workdir / 'figures'
  folder.mkdir(exist_ok=True)
  net = nets.title(experiment.config.model)
  figures.learning_curves(records, folder / 'learning_curves.png', title=f'{workdir.name}: {net}')
  first = experiment.table[0]
  # The towers of 2012: conv1 itself sees all colours, the grouping begins with conv2.
  towers = max((row.groups for row in experiment.table if isinstance(row, layers.Conv)), default=1)
  figures.filter_grid(
    params[first.name]['kernel'],
    folder / 'first_layer_kernels.png',
    towers=towers,
    title=f'{workdir.name}: kernels of {first.name}',
  )
