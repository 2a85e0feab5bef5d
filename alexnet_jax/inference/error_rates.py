"""Error rates of trained runs, ensembles and imported weights on their validation images."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.data.preparation import eval_names, prepare_store
from alexnet_jax.data.store import Store
from alexnet_jax.errors import UserError
from alexnet_jax.model.pretrained import check_same_classes
from alexnet_jax.results import scores
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.predictions import (
  VIEW_NAMES,
  SplitProbabilities,
  write_predictions,
  write_top5,
)
from alexnet_jax.runtime.environment import environment
from alexnet_jax.terminal import Console
from alexnet_jax.train import processes
from alexnet_jax.train.devices import Devices, check_batch_size
from alexnet_jax.train.evaluation import Evaluator
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.weights.initial import weights_of
from alexnet_jax.weights.load import load
from alexnet_jax.weights.run_folder import read_variables


@dataclasses.dataclass(frozen=True)
class EvaluatedNet:
  """Predictions of one net on the validation images.

  Attributes:
    name: in the table.
    predictions: averaged over `views` views.
    classes: names.
    image_names: reads the names of the images.
  """

  name: str
  predictions: SplitProbabilities
  classes: tuple[str, ...]
  views: int
  image_names: Callable[[], list[str]]


def evaluate_run(
  workdir: Path, checkpoint: str, views: int | None = None, data_dir: str | None = None
) -> EvaluatedNet:
  """Evaluates a run with its own config.

  Args:
    workdir: folder of the run.
    checkpoint: 'last' or 'best'.
    views: 1, 9 or 10; None for the config's eval.final_views.
    data_dir: replaces the config's data.dir.

  Raises:
    UserError: no run, no checkpoint, or no data.
  """
  config = read_run_config(workdir)
  config.data.dir = data_dir or config.data.dir
  views = config.eval.final_views = views or config.eval.final_views
  configs.validate(config)
  devices = Devices()
  check_batch_size('eval.batch_size', config.eval.batch_size, devices)
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, devices.platform, weights_of(config, workdir))
  step, variables, _ = read_variables(workdir, checkpoint)
  name = f'{workdir} ({VIEW_NAMES[views]}, epoch {experiment.calendar.epoch_of(step):g})'
  return _evaluate(name, experiment, store, devices, views, variables)


def evaluate_weights(
  path: Path,
  config: ml_collections.ConfigDict,
  net: str | None = None,
  checkpoint: str = 'best',
  views: int | None = None,
) -> EvaluatedNet:
  """Evaluates weights that were trained elsewhere, with their own preprocessing.

  Args:
    path, net, checkpoint: see `weights.load.load`.
    config: its data is evaluated on.
    views: 1, 9 or 10; None for the config's eval.final_views.

  Raises:
    UserError: the weights cannot be read, or are for other images or classes.
  """
  weights = load(path, net=net, checkpoint=checkpoint)
  views = views or config.eval.final_views
  if config.data.image_size != weights.image_size:
    raise UserError(
      f'config.data.image_size={config.data.image_size}: {path} was trained on images of'
      f' {weights.image_size} pixels; use --config.data.image_size={weights.image_size}'
    )
  devices = Devices()
  check_batch_size('eval.batch_size', config.eval.batch_size, devices)
  store = prepare_store(config.data)
  check_same_classes(path, weights.classes, store)
  if config.data.resize != weights.resize:
    print(
      f'note: the weights were trained on images resized by {weights.resize!r}, these are resized'
      f' by {config.data.resize!r}; --config.data.resize={weights.resize} resizes them likewise'
    )
  experiment = make_experiment(config, store, devices.platform)
  experiment = dataclasses.replace(
    experiment,
    table=weights.table,
    model=experiment.model.clone(table=weights.table),
    recipe=dataclasses.replace(experiment.recipe, preprocessing=weights.preprocessing),
  )
  name = f'{weights.source} ({VIEW_NAMES[views]})'
  return _evaluate(name, experiment, store, devices, views, weights.variables)


def _evaluate(
  name: str, experiment: Experiment, store: Store, devices: Devices, views: int, variables: dict
) -> EvaluatedNet:
  evaluator = Evaluator(experiment, store.eval, devices)
  params, batch_stats = (devices.replicate(variables[x]) for x in ('params', 'batch_stats'))
  with Console().count(name, len(store.eval)) as advance:
    predictions = evaluator.predictions(params, batch_stats, views, advance)
  names = functools.partial(eval_names, experiment.config.data, store)
  return EvaluatedNet(name, predictions, store.class_names, views, names)


def evaluate_ensemble(
  workdirs: Sequence[Path], checkpoint: str, views: int | None, data_dir: str | None
) -> list[EvaluatedNet]:
  """Evaluates each run, and then the mean of their probabilities, the last of the list.

  Args:
    workdirs, checkpoint, views, data_dir: see `evaluate_run`.

  Raises:
    UserError: the runs have other views, images or classes.
  """
  final = {workdir: read_run_config(workdir).eval.final_views for workdir in workdirs}
  if not views and len(set(final.values())) > 1:
    found = ', '.join(f'{workdir} {count}' for workdir, count in final.items())
    raise UserError(
      f'--ensemble: eval.final_views of the members differ ({found}): set --views=1, 9'
      ' or 10 for all'
    )
  nets = [evaluate_run(workdir, checkpoint, views, data_dir) for workdir in workdirs]
  members, label = [net.predictions.probabilities for net in nets], nets[0].predictions.label
  for workdir, net in zip(workdirs, nets, strict=True):
    same_shape = net.predictions.probabilities.shape == members[0].shape
    if not same_shape or (net.predictions.label != label).any():
      raise UserError(
        f'{workdir} was evaluated on other images or classes than {workdirs[0]}: an'
        ' ensemble needs the same validation data for all'
      )
  averaged = SplitProbabilities(label, np.mean(members, axis=0))
  name = f'ensemble of {len(nets)}'
  return [*nets, dataclasses.replace(nets[0], name=name, predictions=averaged)]


def print_and_save(
  nets: Sequence[EvaluatedNet],
  workdir: Path,
  saved_as: str,
  command: str,
  top5: Path | None = None,
) -> None:
  """Prints and saves the error rates of all nets, and of the last its predictions too.

  Args:
    nets: evaluated on the same images.
    workdir: where to save.
    saved_as: 'last', 'best', 'imported', ... in the names of the files.
    command: the command line, which is saved too.
    top5: file for the five most probable classes of the last net, see `run.predictions`.

  Raises:
    UserError: that file cannot be written, or is in the folder of another data set.
  """
  devices, last = Devices(), nets[-1]
  if devices.process_index:
    processes.shutdown_together('the report')
    return
  label = last.predictions.label
  results: dict[str, dict[str, Any]] = {}
  for net in nets:
    probabilities = net.predictions.probabilities
    results[net.name] = scores.compute_metrics(probabilities, label)
    print(net.name)
    for metric, value in list(results[net.name].items()):
      if metric in scores.TOP_K:
        low, high = scores.error_interval(round(value * len(label)), len(label))
        results[net.name][f'{metric}_interval'] = (low, high)
        print(f'  {metric:<11}{value:7.2%}   95 % interval {low:.2%} to {high:.2%}')
      else:
        print(f'  {metric:<11}{value:.4f}')
  print(f'  over {len(label):,} images\n\nworst classes')
  for name, images, error, taken_for in scores.worst_classes(probabilities, label, last.classes):
    print(
      f'  {name:<24}{error:7.2%} of {images:,}'
      + f'   mostly taken for {taken_for}' * bool(taken_for)
    )
  record = {'results': results, 'evaluated_images': len(label), 'command': command}
  folder = RunFolder(workdir)
  try:
    files.write_json(folder.evaluation(saved_as, last.views), record | environment(devices))
    write_predictions(folder.predictions(saved_as, last.views), last.predictions)
  except OSError as error:  # a read-only run, or a full disk: the table has been printed
    print(f'warning: the results are not saved in {workdir}: {error.strerror}', file=sys.stderr)
  if top5:
    write_top5(top5, last.predictions, last.image_names())
  processes.shutdown_together('the report')
