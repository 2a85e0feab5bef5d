"""Two questions to a net before a long run: does an image reach its logits, and can it learn a few?

A net whose logits hardly differ between images has a loss of ln(classes) and next to no gradient
that tells images apart: the "loss stays at 6.9" of many AlexNets.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import ml_collections
import numpy as np

from alexnet_jax.data.store import Store
from alexnet_jax.model import layers, preprocessing
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train.devices import AXIS, Devices, to_host
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.step import TrainState

if TYPE_CHECKING:  # what is passed in comes from a room below
  from alexnet_jax.model.pretrained import Pretrained

# A batch is learned when no image of it is mistaken and the loss is below this share of
# ln(classes); training has diverged where it is above this multiple.
LEARNED, DIVERGED = 0.1, 100.0
# A loss above this share of what a net blind to its images can reach tells no images apart.
BLIND = 0.95


class _MeanDropout(AlexNet):
  """The same net, whose dropout passes its mean in training as it does in the test."""

  def _run(self, row, x, train, keys, index):
    drops = isinstance(row, layers.Dropout)
    return super()._run(row, x, train and not drops, keys, index)


@dataclasses.dataclass(frozen=True)
class Activations:
  """What a layer puts out for a few images.

  Attributes:
    name, kind: the row of the table.
    shape: of one image's output.
    mean, std: over all units and images.
    active: share of outputs above 0; None for all but ReLU rows.
    signal: standard deviation of a unit from image to image, averaged over the units.
  """

  name: str
  kind: str
  shape: layers.Shape
  mean: float
  std: float
  active: float | None
  signal: float


@dataclasses.dataclass(frozen=True)
class Step:
  """The batch as seen after `step` updates."""

  step: int
  loss: float
  top1_error: float


def one_batch_experiment(
  config: ml_collections.ConfigDict,
  store: Store,
  batch_size: int,
  weights: 'Pretrained | None' = None,
) -> Experiment:
  """The run of `config` without what would hide whether a net can learn a single batch.

  Central crops, no mirror, no color noise, no label smoothing; batch-norm moments of the whole
  batch; `single_batch_rate` throughout.  Dropout passes its mean, so that the loss is free of noise
  and units keep the size for which the rate was chosen.  Weight decay, momentum and the biases' own
  rate stay.

  Args:
    config: validated.
    store: the data; only its classes, statistics and number of rows matter.
    batch_size: images of the batch.
    weights: what config.weights names.
  """
  config = copy.deepcopy(config)
  config.optimizer.learning_rate = single_batch_rate(config, batch_size, len(store.classes))
  config.optimizer.base_batch_size = 0
  config.batch_size = batch_size
  config.grad_accum_steps = 1
  config.label_smoothing = 0.0
  config.ema_decay = 0.0
  config.model.ghost_batch = 0
  config.input.random_crop = False
  config.input.random_flip = False
  config.input.color_noise = 0.0
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.schedule.kind = 'constant'
  config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_lr_factors = {}
  experiment = make_experiment(config, store, AXIS, weights, Devices.single().platform)
  return with_table(experiment, experiment.table)


def single_batch_rate(config: ml_collections.ConfigDict, batch_size: int, classes: int) -> float:
  """The initial rate of a run, made fit for a batch of few images.

  At first a net learns how often each label occurs, whatever the image.  The fewer labels there
  are, the larger such a step: the rate falls in proportion where the batch can hold fewer classes
  than those of the run.  A rate that needs warm-up falls in proportion to the images, to where
  warm-up starts (Goyal et al., arXiv 1706.02677).
  """
  optimizer = config.optimizer
  rate = (
    optimizer.learning_rate * config.batch_size / (optimizer.base_batch_size or config.batch_size)
  )
  if optimizer.warmup_epochs:
    return rate * batch_size / config.batch_size
  return rate * min(batch_size, classes) / min(config.batch_size, classes)


def with_table(experiment: Experiment, table: layers.Table) -> Experiment:
  """The same run of another table with the same parameters by name; dropout passes its mean."""
  model = experiment.model
  model = _MeanDropout(table, model.compute_dtype, model.axis_name, model.ghost_batch, model.onednn)
  return dataclasses.replace(experiment, table=table, model=model)


def activations(experiment: Experiment, state: TrainState, images: np.ndarray) -> list[Activations]:
  """Statistics of every layer, from the input down to the logits.

  Dropout rows are left out (every unit passes at its full size), and batch normalization takes the
  moments of these images, as in training.

  Args:
    experiment: whose net and preprocessing are used.
    state: whose weights are used, such as `experiment.initial_state()`.
    images: uint8 (N, S, S, 3), N > 1, of which the central view is taken.
  """
  table = tuple(row for row in experiment.table if not isinstance(row, layers.Dropout))
  # By XLA's own convolutions: a program that runs once is not worth compiling at every start.
  model = experiment.model.clone(table=table, axis_name=None, onednn=False)

  @jax.jit
  def outputs(params, batch_stats, images):
    views = experiment.recipe.preprocessing.test_view(
      images, np.array(preprocessing.CENTER_VIEW[0])
    )
    _, found = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      views,
      train=True,
      mutable=['batch_stats', 'intermediates'],
    )
    return {'input': views, **found['intermediates']['outputs']}

  found = outputs(state.params, state.batch_stats, images)
  rows = [layers.Row('input'), *table]
  return [_statistics(row, np.asarray(found[row.name], np.float32)) for row in rows]


def _statistics(row: layers.Row, x: np.ndarray) -> Activations:
  """Statistics of the outputs x, (N, ...), of a row."""
  return Activations(
    name=row.name,
    kind='' if type(row) is layers.Row else type(row).__name__,
    shape=x.shape[1:],
    mean=float(x.mean(dtype=np.float64)),
    std=float(x.std(dtype=np.float64)),
    active=float((x > 0).mean()) if isinstance(row, layers.Relu) else None,
    signal=float(x.std(axis=0, dtype=np.float64).mean()),
  )


def overfit(
  experiment: Experiment, state: TrainState, images: np.ndarray, labels: np.ndarray, steps: int
) -> Iterator[Step]:
  """Trains on the same batch again and again, with the train step of a run, on one device.

  Args:
    experiment: see `one_batch_experiment`.
    state: where to start.
    images: uint8 (N, S, S, 3).
    labels: int (N,).
    steps: updates at most.

  Yields:
    The loss and error before the first update and after each, as training sees them, until the
    batch is learned or training has diverged.
  """
  devices = Devices.single()
  train_step, _ = experiment.train_step(devices, state)
  state = devices.replicate(to_host(state))
  batch = devices.put_batch(
    {
      'image': images,
      'label': labels.astype(np.int32),
      'position': np.arange(len(labels), dtype=np.int32),
    }
  )
  for step in range(steps + 1):
    state, metrics = train_step(state, batch)
    seen = Step(step, float(metrics['loss']), float(metrics['top1_error']))
    yield seen
    classes = len(experiment.classes)
    if is_learned(seen, classes) or has_diverged(seen, classes):
      return


def is_learned(seen: Step, classes: int) -> bool:
  return seen.top1_error == 0 and seen.loss < LEARNED * math.log(classes)


def has_diverged(seen: Step, classes: int) -> bool:
  return not seen.loss < DIVERGED * math.log(classes)


def label_entropy(labels: np.ndarray) -> float:
  """The least loss, in nats, of a net that knows how often a label occurs but sees no image."""
  shares = np.unique(labels, return_counts=True)[1] / len(labels)
  return float(-(shares * np.log(shares)).sum())


def verdict(course: list[Step], classes: int, blind: float) -> tuple[str, str]:
  """What came of `overfit`.

  Args:
    course: all that it yielded.
    classes: number of classes.
    blind: see `label_entropy`.

  Returns:
    'learned', 'plateau', 'unfinished' or 'diverged', and a sentence.
  """
  last = course[-1]
  if has_diverged(last, classes):
    return 'diverged', f'the loss is {last.loss:.3g} at step {last.step:,}'
  if is_learned(last, classes):
    return 'learned', (
      f'after {last.step:,} steps no image is mistaken and the loss is below'
      f' {LEARNED * math.log(classes):.3f}, a tenth of ln({classes:,})'
    )
  known = (
    f'after {last.step:,} steps the loss is {last.loss:.3f}; {blind:.3f} can be reached by'
    ' knowing which labels occur.'
  )
  if min(step.loss for step in course) > BLIND * blind:
    return 'plateau', f'{known}  The net hardly tells the images apart'
  return 'unfinished', f'{known}  The net tells images apart, but needs more steps or a lower rate'
