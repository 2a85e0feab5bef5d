"""Error rates of a trained run, or of several runs together.

  python -m alexnet_jax.evaluate --workdir=runs/imagenet --views=10
  python -m alexnet_jax.evaluate --ensemble=runs/a,runs/b --views=10 --ensemble_weights=search

Every held-out image is counted exactly once, on any number of devices.  The softmax probabilities
of views, and of the members of an ensemble, are averaged.  Beside the table come the 95 % bootstrap
interval of each error and the worst classes; the first folder gets `predictions-*.npz` (label,
probabilities) and `evaluation-*.json`.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import command, compilation_cache, cpu
from alexnet_jax.errors import UserError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_ENSEMBLE = flags.DEFINE_list('ensemble', [], 'Folders of runs whose probabilities are averaged.')
_VIEWS = flags.DEFINE_enum(
  'views', None, ['1', '9', '10'], 'Views averaged an image; the config decides if not given.'
)
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which saved state.')
_ENSEMBLE_WEIGHTS = flags.DEFINE_string(
  'ensemble_weights', 'equal', 'Of an ensemble: equal, numbers, or search (on these very images).'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data is now, if it has moved.')


def main() -> None:
  if bool(_WORKDIR.value) == bool(_ENSEMBLE.value):
    raise UserError('give either --workdir=RUN or --ensemble=RUN,RUN,...')
  workdirs = [Path(name) for name in _ENSEMBLE.value or [_WORKDIR.value]]
  from alexnet_jax.results import scores

  cpu.prepare_process()
  compilation_cache.prepare_process()
  found = [_predict(workdir) for workdir in workdirs]
  names, predictions, classes, views = zip(*found, strict=True)
  label = predictions[0].label
  for workdir, other in zip(workdirs, predictions, strict=True):
    if (
      other.probabilities.shape != predictions[0].probabilities.shape
      or (other.label != label).any()
    ):
      raise UserError(
        f'{workdir} was evaluated on other images or classes than {workdirs[0]}: an'
        ' ensemble needs the same held-out data for all'
      )
  rows = {name: member.probabilities for name, member in zip(names, predictions, strict=True)}
  tag = f'{_CHECKPOINT.value}-{views[0]}'
  if len(workdirs) > 1:
    weights = _weights(list(rows.values()), label)
    shown = ', '.join(f'{weight:g}' for weight in weights)
    mixed = scores.mix(list(rows.values()), weights)
    rows[f'ensemble of {len(workdirs)} (weights {shown})'] = mixed
    tag = f'ensemble-{tag}'
  _report(rows, label, classes[0], workdirs[0], tag)


def _predict(workdir: Path):
  """Name, predictions, classes and views of one run."""
  from alexnet_jax import config as configs
  from alexnet_jax.data.preparation import prepare_store
  from alexnet_jax.data.progress import Console
  from alexnet_jax.train.evaluation import VIEW_NAMES, Evaluator
  from alexnet_jax.train.experiment import make_experiment
  from alexnet_jax.train.parallel import AXIS, Devices
  from alexnet_jax.train.workdir import CONFIG, read_json

  if not (workdir / CONFIG).exists():
    raise UserError(f'{workdir} holds no run: there is no {CONFIG}')
  config = configs.from_json(read_json(workdir / CONFIG))
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  views = config.eval.final_views = int(_VIEWS.value or config.eval.final_views)
  configs.validate(config)

  devices = Devices()
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, AXIS)
  state, step = experiment.restored(workdir, _CHECKPOINT.value)
  evaluator = Evaluator(experiment, store.eval, devices)
  with Console().count(f'{workdir}: {VIEW_NAMES[views]}', len(store.eval)) as advance:
    predictions = evaluator.predictions(
      devices.replicate(state.eval_params), devices.replicate(state.batch_stats), views, advance
    )
  epoch = experiment.calendar.epoch_of(step)
  return (
    f'{workdir} ({VIEW_NAMES[views]}, epoch {epoch:g})',
    predictions,
    store.class_names,
    views,
  )


def _weights(members, label) -> list[float]:
  from alexnet_jax.results import scores

  if _ENSEMBLE_WEIGHTS.value == 'equal':
    return [1.0] * len(members)
  if _ENSEMBLE_WEIGHTS.value == 'search':
    return scores.search_weights(members, label)
  try:
    weights = [float(weight) for weight in _ENSEMBLE_WEIGHTS.value.split(',')]
  except ValueError:
    weights = []
  if len(weights) != len(members) or min(weights) < 0 or not sum(weights):
    raise UserError(
      f'--ensemble_weights={_ENSEMBLE_WEIGHTS.value}: must be equal, search, or {len(members)}'
      ' non-negative numbers like 0.4,0.6'
    )
  return weights


def _report(rows, label, classes, workdir: Path, tag: str) -> None:
  """Prints the table and the worst classes of the last row, and writes both files."""
  from alexnet_jax.results import files, scores
  from alexnet_jax.train.evaluation import Predictions, write_predictions
  from alexnet_jax.train.parallel import Devices
  from alexnet_jax.train.workdir import environment

  results = {}
  for name, probabilities in rows.items():
    results[name] = scores.errors(probabilities, label)
    print(name)
    for metric, value in list(results[name].items()):
      text = f'  {metric:<11}{value:.4f}'
      if metric != 'loss':
        wrong = scores.wrong(probabilities, label, int(metric[3]))
        low, high = scores.bootstrap_interval(wrong)
        results[name][f'{metric}_interval'] = (low, high)
        text = f'  {metric:<11}{value:7.2%}   95 % interval {low:.2%} to {high:.2%}'
      print(text)
  print(f'  over {len(label):,} images\n\nworst classes')
  for name, images, error, taken_for in scores.worst_classes(probabilities, label, classes):
    print(
      f'  {name:<24}{error:7.2%} of {images:,}'
      + f'   mostly taken for {taken_for}' * bool(taken_for)
    )
  files.write_json(
    workdir / f'evaluation-{tag}.json',
    {
      'results': results,
      'evaluated_images': len(label),
      'command': command.spoken(),
      **environment(Devices()),
    },
  )
  write_predictions(workdir / f'predictions-{tag}.npz', Predictions(label, probabilities))


if __name__ == '__main__':
  sys.exit(command.run(main))
