"""Error rates of a trained run, of several runs together, or of weights of others.

  python -m alexnet_jax.evaluate --workdir=runs/imagenet --views=10
  python -m alexnet_jax.evaluate --ensemble=runs/a,runs/b --views=10 --ensemble_weights=search
  python -m alexnet_jax.evaluate --weights=alexnet.pth --config=configs/imagenet.py:owt

Every held-out image is counted exactly once, on any number of devices.  The softmax probabilities
of views, and of the members of an ensemble, are averaged.  Beside the table come the 95 % Wilson
interval of each error and the worst classes; the first folder gets `predictions-*.npz` (label,
probabilities) and `evaluation-*.json`.

--weights takes what `alexnet_jax.convert` takes.  They are evaluated on the data of --config with
the preprocessing that they were trained with; the files go to runs/<name of the weights>.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import compilation_cache, cpu, distributed, platforms

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_ENSEMBLE = flags.DEFINE_list('ensemble', [], 'Folders of runs whose probabilities are averaged.')
_VIEWS = flags.DEFINE_enum(
  'views', None, ['1', '9', '10'], 'Views averaged an image; the config decides if not given.'
)
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which saved state.')
_ENSEMBLE_WEIGHTS = flags.DEFINE_string(
  'ensemble_weights', 'equal', 'Equal, numbers, or search (on these very images).'
)
_WEIGHTS = flags.DEFINE_string('weights', None, 'Weights to evaluate on the data of --config.')
_NET = flags.DEFINE_enum(
  'net', None, ['caffe', 'caffenet'], 'Which one, where --weights does not say it.'
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'auto', ['auto', 'on', 'off'], 'Whether this is one process of a job of several.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data is now, if it has moved.')


def main() -> None:
  if [bool(flag.value) for flag in (_WORKDIR, _ENSEMBLE, _WEIGHTS)].count(True) != 1:
    raise UserError(
      'give one of --workdir=RUN, --ensemble=RUN,RUN,... and --weights=FILE (with --config=...)'
    )
  config = None
  if _WEIGHTS.value:
    config, _ = cli.read_config()
  else:
    cli.refuse_config('a run is evaluated with its own config')
  cpu.prepare_process()
  if not distributed.join(_DISTRIBUTED.value):
    compilation_cache.prepare_process()
  platforms.prepare_process()
  from alexnet_jax.results import scores

  if config:
    name, predictions, classes, views = _predict_imported(Path(_WEIGHTS.value), config)
    rows = {name: predictions.probabilities}
    folder = Path('runs', Path(_WEIGHTS.value).stem)
    _report(rows, predictions.label, classes, folder, 'imported', views)
    return
  workdirs = [Path(name) for name in _ENSEMBLE.value or [_WORKDIR.value]]
  resolved = [workdir.resolve() for workdir in workdirs]
  for workdir in workdirs:
    if resolved.count(workdir.resolve()) > 1:
      raise UserError(f'--ensemble has {workdir} more than once: give each run once')
  if not _VIEWS.value:
    _check_views(workdirs)
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
  saved_as = _CHECKPOINT.value
  if len(workdirs) > 1:
    weights = _weights(list(rows.values()), label)
    shown = ', '.join(f'{weight:g}' for weight in weights)
    mixed = scores.mix(list(rows.values()), weights)
    rows[f'ensemble of {len(workdirs)} (weights {shown})'] = mixed
    saved_as = f'ensemble-{saved_as}'
  _report(rows, label, classes[0], workdirs[0], saved_as, views[0])


def _check_views(workdirs: list[Path]) -> None:
  """Raises UserError if the configs of an ensemble's members end with different views."""
  from alexnet_jax.run.claim import read_run_config

  views = {workdir: read_run_config(workdir).eval.final_views for workdir in workdirs}
  if len(set(views.values())) > 1:
    found = ', '.join(f'{workdir} {count}' for workdir, count in views.items())
    raise UserError(
      f'--ensemble: eval.final_views of the members differ ({found}); say how many all are to'
      ' average with --views=1, 9 or 10'
    )


def _predict(workdir: Path):
  """Name, predictions, classes and views of one run."""
  from alexnet_jax import config as configs
  from alexnet_jax.data.preparation import prepare_store
  from alexnet_jax.run.claim import read_run_config
  from alexnet_jax.run.predictions import VIEW_NAMES
  from alexnet_jax.train.devices import AXIS, Devices
  from alexnet_jax.train.experiment import make_experiment
  from alexnet_jax.weights.start import weights_of

  config = read_run_config(workdir)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  views = config.eval.final_views = int(_VIEWS.value or config.eval.final_views)
  configs.validate(config)

  devices = Devices()
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, AXIS, weights_of(config, workdir), devices.platform)
  state, step = experiment.restored(workdir, _CHECKPOINT.value)
  predictions = _predictions(
    f'{workdir}', experiment, store, devices, views, state.eval_params, state.batch_stats
  )
  epoch = experiment.calendar.epoch_of(step)
  return (
    f'{workdir} ({VIEW_NAMES[views]}, epoch {epoch:g})',
    predictions,
    store.class_names,
    views,
  )


def _predictions(name: str, experiment, store, devices, views: int, params, batch_stats):
  from alexnet_jax.run.predictions import VIEW_NAMES
  from alexnet_jax.terminal import Console
  from alexnet_jax.train.evaluation import Evaluator

  evaluator = Evaluator(experiment, store.eval, devices)
  with Console().count(f'{name}: {VIEW_NAMES[views]}', len(store.eval)) as advance:
    return evaluator.predictions(
      devices.replicate(params), devices.replicate(batch_stats), views, advance
    )


def _predict_imported(path: Path, config):
  """As `_predict`, of weights that were trained elsewhere."""
  from alexnet_jax.data.preparation import prepare_store
  from alexnet_jax.model.pretrained import check_classes
  from alexnet_jax.run.predictions import VIEW_NAMES
  from alexnet_jax.train.devices import AXIS, Devices
  from alexnet_jax.train.experiment import make_experiment
  from alexnet_jax.weights.load import load

  weights = load(path, net=_NET.value, checkpoint=_CHECKPOINT.value)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  views = int(_VIEWS.value or config.eval.final_views)
  if config.data.image_size != weights.image_size:
    raise UserError(
      f'config.data.image_size={config.data.image_size}: {path} wants pictures of'
      f' {weights.image_size} pixels; use --config.data.image_size={weights.image_size}'
    )
  devices = Devices()
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  store = prepare_store(config.data)
  check_classes(path, weights.classes, store)
  if config.data.resize != weights.resize:
    print(
      f'note: the weights were made for pictures resized by {weights.resize!r}, these are resized'
      f' by {config.data.resize!r}; --config.data.resize={weights.resize} prepares theirs'
    )
  experiment = make_experiment(config, store, AXIS, platform=devices.platform)
  experiment = dataclasses.replace(
    experiment,
    table=weights.table,
    model=experiment.model.clone(table=weights.table),
    recipe=dataclasses.replace(experiment.recipe, preprocessing=weights.preprocessing),
  )
  predictions = _predictions(f'{path}', experiment, store, devices, views, **weights.variables)
  return f'{weights.source} ({VIEW_NAMES[views]})', predictions, store.class_names, views


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


def _report(rows, label, classes, workdir: Path, saved_as: str, views: int) -> None:
  """Prints the table and the worst classes of the last row, and writes both files."""
  from alexnet_jax import files
  from alexnet_jax.results import scores
  from alexnet_jax.run.folder import RunFolder
  from alexnet_jax.run.predictions import SplitProbabilities, write_predictions
  from alexnet_jax.runtime.environment import environment
  from alexnet_jax.train import processes
  from alexnet_jax.train.devices import Devices

  devices = Devices()
  if devices.process_index:
    processes.shutdown_together('the report')
    return
  results = {}
  for name, probabilities in rows.items():
    results[name] = scores.errors(probabilities, label)
    print(name)
    for metric, value in list(results[name].items()):
      text = f'  {metric:<11}{value:.4f}'
      if metric != 'loss':
        wrong = scores.wrong(probabilities, label, int(metric[3]))
        low, high = scores.error_interval(wrong.sum(), len(wrong))
        results[name][f'{metric}_interval'] = (low, high)
        text = f'  {metric:<11}{value:7.2%}   95 % interval {low:.2%} to {high:.2%}'
      print(text)
  print(f'  over {len(label):,} images\n\nworst classes')
  for name, images, error, taken_for in scores.worst_classes(probabilities, label, classes):
    print(
      f'  {name:<24}{error:7.2%} of {images:,}'
      + f'   mostly taken for {taken_for}' * bool(taken_for)
    )
  record = {
    'results': results,
    'evaluated_images': len(label),
    'command': cli.command_line(),
    **environment(devices),
  }
  try:
    folder, last = RunFolder(workdir), SplitProbabilities(label, probabilities)
    files.write_json(folder.evaluation(saved_as, views), record)
    write_predictions(folder.predictions(saved_as, views), last)
  except OSError as error:  # somebody else's run, or a full disk: the table is what was asked for
    print(f'warning: this is not kept in {workdir}: {error.strerror}', file=sys.stderr)
  processes.shutdown_together('the report')


if __name__ == '__main__':
  sys.exit(cli.run(main))
