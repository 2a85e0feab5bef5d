"""Two questions to a net before a long run: does an image reach its logits, and can it learn a few?

A net whose logits hardly differ between images has a loss of ln(classes) and next to no gradient
that tells images apart: the "loss stays at 6.9" of many AlexNets.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from alexnet_jax.data.store import Store
from alexnet_jax.model import layers
from alexnet_jax.train import augment
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.parallel import AXIS, Devices, to_host
from alexnet_jax.train.step import TrainState, make_train_step

# A batch is learned when no image of it is mistaken and the loss is below this share of
# ln(classes).
LEARNED_LOSS = 0.1
# A loss this near to what a net blind to its images can reach has not begun to tell them apart.
FLAT = 0.05


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
    config: ml_collections.ConfigDict, store: Store, batch_size: int) -> Experiment:
  """The run of `config` without what would hide whether a net can learn a single batch.

  Central crops, no mirror, no colour noise, no label smoothing; the initial rate throughout,
  without warm-up.  Weight decay, momentum, the biases' own rate and dropout stay: without dropout
  that is not inverted, the nets of 2012 have twice the activations, and their rate is too large.

  Args:
    config: validated.
    store: the data; only its classes, statistics and number of rows matter.
    batch_size: images of the batch.
  """
  config = copy.deepcopy(config)
  if config.optimizer.base_batch_size:
    config.optimizer.learning_rate *= config.batch_size / config.optimizer.base_batch_size
    config.optimizer.base_batch_size = 0
  config.batch_size = batch_size
  config.micro_batches = 1
  config.label_smoothing = 0.0
  config.ema_decay = 0.0
  config.model.ghost_batch = 0
  config.input.random_crop = False
  config.input.mirror = False
  config.input.colour_noise = 0.0
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.schedule.kind = 'constant'
  config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_factors = {}
  return make_experiment(config, store, AXIS)


def activations(
    experiment: Experiment, state: TrainState, images: np.ndarray) -> list[Activations]:
  """Statistics of every layer, from the input down to the logits.

  Dropout rows are left out (every unit passes at its full size), and batch normalization takes the
  moments of these images, as in training.

  Args:
    experiment: whose net and preprocessing are used.
    state: whose weights are used, such as `experiment.initial_state()`.
    images: uint8 (N, S, S, 3), N > 1, of which the central view is taken.
  """
  table = tuple(row for row in experiment.table if not isinstance(row, layers.Dropout))
  model = experiment.model.clone(table=table, axis_name=None)

  @jax.jit
  def outputs(params, batch_stats, images):
    views = experiment.recipe.preprocessing.test_view(images, np.array(augment.CENTRE_VIEW[0]))
    _, found = model.apply(
        {'params': params, 'batch_stats': batch_stats}, views, train=True,
        mutable=['batch_stats', 'intermediates'])
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
      signal=float(x.std(axis=0, dtype=np.float64).mean()))


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
    The loss and error before the first update and after each, as training sees them (with
    dropout), until the batch is learned or the loss is no longer finite.
  """
  devices = Devices(jax.local_devices()[:1])
  train_step = devices.train_step(make_train_step(experiment.model, experiment.recipe, AXIS))
  state = devices.replicate(to_host(state))
  batch = devices.put_batch({
      'image': images, 'label': labels.astype(np.int32),
      'position': np.arange(len(labels), dtype=np.int32)})
  for step in range(steps + 1):
    state, metrics = train_step(state, batch)
    seen = Step(step, float(metrics['loss']), float(metrics['top1_error']))
    yield seen
    if is_learned(seen, len(experiment.classes)) or not math.isfinite(seen.loss):
      return


def is_learned(seen: Step, classes: int) -> bool:
  return seen.top1_error == 0 and seen.loss < LEARNED_LOSS * math.log(classes)


def blind_loss(labels: np.ndarray) -> float:
  """The least loss, in nats, of a net that knows how often a label occurs but sees no image."""
  shares = np.unique(labels, return_counts=True)[1] / len(labels)
  return float(-(shares * np.log(shares)).sum())


def verdict(course: list[Step], classes: int, blind: float) -> tuple[str, str]:
  """What came of `overfit`.

  Args:
    course: all that it yielded.
    classes: number of classes.
    blind: see `blind_loss`.

  Returns:
    'learned', 'plateau', 'unfinished' or 'diverged', and a sentence.
  """
  last = course[-1]
  if not math.isfinite(last.loss):
    return 'diverged', f'the loss is not finite at step {last.step:,}; lower the learning rate'
  if is_learned(last, classes):
    return 'learned', (
        f'after {last.step:,} steps no image is mistaken and the loss is below'
        f' {LEARNED_LOSS * math.log(classes):.3f}, a tenth of ln({classes:,})')
  loss = float(np.mean([step.loss for step in course[-10:]]))
  known = f'{blind:.3f} is what knowing only which labels occur can reach'
  if loss > (1 - FLAT) * blind:
    return 'plateau', (
        f'after {last.step:,} steps the loss is {loss:.3f} (mean of the last ten); {known}.'
        '  The net does not tell the images apart')
  return 'unfinished', (
      f'after {last.step:,} steps the loss is {loss:.3f} (mean of the last ten); {known}.'
      '  The net tells images apart but has not learned them all: allow more --overfit_steps')
