"""Two checks of a net before a long run: do its logits depend on the image, can it learn a batch?

A net whose logits hardly differ between images has a loss of ln(classes) and next to no gradient
that tells images apart: the "loss stays at 6.9" of many AlexNets.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from scipy import stats

from alexnet_jax import files
from alexnet_jax.data import generated, preparation
from alexnet_jax.data import images as image_files
from alexnet_jax.data.job import in_memory_store
from alexnet_jax.data.listing import list_images
from alexnet_jax.data.store import Store
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets, preprocessing
from alexnet_jax.model.alexnet import AlexNet, as_subclass
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.runtime.environment import environment
from alexnet_jax.terminal import aligned
from alexnet_jax.train.devices import Devices, to_host
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.loop import make_program
from alexnet_jax.train.schedules import initial_rate
from alexnet_jax.train.step import TrainState

LEARNED, DIVERGED = 0.1, 100.0  # bounds of the loss, as multiples of ln(classes)
PLATEAU = 0.95  # a loss above this share of the labels' entropy does not tell images apart
# Of #145 on ImageNet images; it is 0.011 with the paper's initialization, 0.005 and 0.008 in
# Caffe's two nets.
_SIGNAL_2012 = 0.164
_WEAK_SIGNAL, _STRONG_SIGNAL = 0.03, 1.0


class StepResult(NamedTuple):
  """Loss and error of the batch after `step` updates."""

  step: int
  loss: float
  top1_error: float


def diagnose(config, name: str, weights: Pretrained | None, options, command: str) -> None:
  """Prints both checks of the config called `name`; `options` are the flags of the command.

  Raises:
    UserError: fewer than two images, an unreadable one, or a file that cannot be written.
  """
  store, images, labels, source = choose_batch(config, options.batch_size, options.images)
  classes, net = len(store.classes), nets.title(config.model)
  print(f'{name}: net {net}, {classes:,} classes\n{source}\n\nat initialization, no dropout:\n')
  experiment = one_batch_experiment(config, store, len(images), weights)
  state = experiment.initial_state()
  rows = activations(experiment, state, images)
  signal = rows[-1]['signal']
  print(f'{_layer_table(rows)}\n\n{interpretation(signal, classes)}', flush=True)
  results = {'config': name, 'net': net, 'classes': classes, 'images': source}
  results |= {'layers': rows, 'logit_signal': signal}
  if options.overfit_steps:
    rate = experiment.config.optimizer.learning_rate
    # In nats: the least loss of a net that does not look at the image.
    entropy = float(stats.entropy(np.bincount(labels)))
    print(
      f'\nthe same {len(images)} images at every step, at rate {rate:g}'
      f' (config: {config.optimizer.learning_rate:g}, batches of {config.batch_size}):\n\n'
      '    step        loss  top-1 error'
    )
    history = []
    for result in overfit(experiment, state, images, labels, options.overfit_steps):
      history.append(result)
      if str(result.step).rstrip('0') in ('', '1', '2', '5'):
        print(f'{result.step:8,}  {result.loss:10.4g}  {result.top1_error:11.4f}', flush=True)
    verdict, reason = judge(history, classes, entropy)
    print(f'\n{verdict}: {reason}')
    results['overfit'] = {
      'learning_rate': rate,
      'label_entropy': entropy,
      'verdict': verdict,
      'history': [step._asdict() for step in history],
    }
  if options.json:
    with files.one_line_error(f'--json={options.json}'):
      files.write_json(options.json, results | {'command': command, **environment(Devices())})


def choose_batch(
  config, size: int, folder: str | None
) -> tuple[Store, np.ndarray, np.ndarray, str]:
  """Takes at most `size` images of the config, of another folder, or generated ones.

  Returns:
    The store of the training images, images uint8 (n, S, S, 3), labels int32 (n,), and a line that
    says what they are.
  """
  path = preparation.store_path(config.data) if config.data.source == 'tfds' else None
  if not path or path.exists():
    store = preparation.prepare_store(config.data)
    kind = f'training images of {store.path or config.data.source}'
  else:
    store = generated_store(config.data.num_classes or 10, size, config.data.image_size)
    kind = f'generated images: no prepared {config.data.name} at {path}'
  images, labels = store.train.images[:size], store.train.labels[:size]
  if folder:
    images = read_folder(Path(folder), size, config.data, store.upright)
    labels = (np.arange(len(images)) % len(store.classes)).astype(np.int32)
    kind = f'images of {folder}, labels made up'
  source = f'{len(images)} {kind}'
  if len(images) < 2:
    raise UserError(f'{source}: at least 2 are needed to tell them apart')
  return store, np.asarray(images), np.asarray(labels), source


def generated_store(classes: int, count: int, image_size: int) -> Store:
  """A store of `count` images of `data.source=synthetic`."""
  source = generated.synthetic(classes, count, image_size)
  source = dataclasses.replace(source, eval=source.train)  # its own has images of all classes
  return in_memory_store(source, image_size=image_size, resize='crop')


def read_folder(folder: Path, count: int, data, upright: bool) -> np.ndarray:
  """At most `count` images of a folder and its subfolders, as uint8 (n, S, S, 3).

  They are spread evenly over the names, which often begin with the class. `data` is config.data,
  `upright` whether to turn them by their EXIF orientation.

  Raises:
    UserError: no such folder, no images in it, or one that cannot be read.
  """
  if not folder.is_dir():
    raise UserError(f'--images={folder}: there is no such folder')
  paths = [folder / file for file in list_images(folder).files]
  if not paths:
    raise UserError(f'--images={folder}: holds no {", ".join(image_files.EXTENSIONS)}')
  count = min(count, len(paths))
  images = []
  for path in (paths[i * len(paths) // count] for i in range(count)):
    try:
      images.append(image_files.read_image(path, data.image_size, data.resize, upright))
    except image_files.UnreadableImage as error:
      raise UserError(f'{path} cannot be read ({error}): remove it from --images') from error
  return np.stack(images)


def activations(experiment: Experiment, state: TrainState, images: np.ndarray) -> list[dict]:
  """Statistics of every layer's output for the central views of images, uint8 (n, S, S, 3).

  Dropout is left out, and batch normalization takes the moments of these images, as in training.

  Returns:
    For the input and each layer: name, kind, and shape (of one image); mean and std over all units
    and images; active, the share of outputs above 0, for ReLU only; and signal, the standard
    deviation of a unit across images, averaged over the units.
  """
  table = tuple(row for row in experiment.table if not isinstance(row, layers.Dropout))
  # With XLA's own convolutions: oneDNN's would be compiled at every start, for a single call.
  model = experiment.model.clone(table=table, axis_name=None, onednn=False)

  @jax.jit
  def outputs(params, batch_stats, images):
    center = np.array(preprocessing.CENTER_VIEW[0])
    views = experiment.recipe.preprocessing.test_view(images, center)
    _, found = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      views,
      train=True,
      mutable=['batch_stats', 'intermediates'],
    )
    return {'input': views, **found['intermediates']['outputs']}

  found = outputs(state.params, state.batch_stats, images)
  rows = []
  for row in (layers.Row('input'), *table):
    x = np.asarray(found[row.name], np.float32)
    rows.append(
      {
        'name': row.name,
        'kind': '' if type(row) is layers.Row else type(row).__name__,
        'shape': x.shape[1:],
        'mean': float(x.mean(dtype=np.float64)),
        'std': float(x.std(dtype=np.float64)),
        'active': float((x > 0).mean()) if isinstance(row, layers.Relu) else None,
        'signal': float(x.std(axis=0, dtype=np.float64).mean()),
      }
    )
  return rows


def _layer_table(rows: list[dict]) -> str:
  lines = [('layer', 'kind', 'output', 'mean', 'std', 'active', 'signal')]
  for row in rows:
    shape = 'x'.join(map(str, row['shape']))
    active = '' if row['active'] is None else f'{row["active"]:.2f}'
    mean, std, signal = (f'{row[name]:.4g}' for name in ('mean', 'std', 'signal'))
    lines.append((row['name'], row['kind'], shape, mean, std, active, signal))
  return '\n'.join(aligned(lines, left=(0, 1)))


def interpretation(signal: float, classes: int) -> str:
  """What the signal of the logits at initialization means for the start of training."""
  guessing = f'the loss of guessing, ln({classes:,}) = {math.log(classes):.3f}'
  text = f'logit signal {signal:.3g} ({_SIGNAL_2012} in the net of 2012 on ImageNet images): '
  if signal < _WEAK_SIGNAL:
    return text + (
      f'the logits hardly depend on the image, so training starts at {guessing}, and may stay there'
      ' for long. See at which layer the signal falls, and check its initial weights (in conv3-5'
      ' 0.03, not 0.01), biases of 1 beside small weights, and the input (the nets of 2012 expect'
      ' 0-255 minus the mean: a std near 60).'
    )
  if signal > _STRONG_SIGNAL:
    return text + (
      f'the logits differ widely between images, so training starts above {guessing}, and the first'
      ' steps may be too large: lower the rate, or warm up.'
    )
  return text + (
    f'the logits depend on the image from the start. If training stays at {guessing}, check labels,'
    ' rate and order of the data, not the initialization.'
  )


class _MeanDropout(AlexNet):
  """The same net, with dropout that multiplies by its mean in training, as it does in the test."""

  def _run(self, row, x, train, keys, index):
    drops = isinstance(row, layers.Dropout)
    return super()._run(row, x, train and not drops, keys, index)


def one_batch_experiment(
  config: ml_collections.ConfigDict,
  store: Store,
  batch_size: int,
  weights: Pretrained | None = None,
) -> Experiment:
  """The run of a config without what would hide whether its net can learn a single batch.

  Without augmentation, label smoothing and ghost batches, at a constant `single_batch_rate`.
  Dropout multiplies by its mean, so that the loss has no noise and units keep the size that the
  rate was chosen for. Weight decay, momentum and the biases' rate stay.
  """
  config = copy.deepcopy(config)
  config.optimizer.learning_rate = single_batch_rate(config, batch_size, len(store.classes))
  config.optimizer.base_batch_size = 0
  config.batch_size = batch_size
  config.grad_accum_steps = config.steps_per_call = 1
  config.model.shard_dense = False
  config.label_smoothing = config.ema_decay = 0.0
  config.model.ghost_batch = 0
  config.input.random_crop = config.input.random_flip = False
  config.input.color_noise = 0.0
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.schedule.kind = config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_lr_factors = {}
  experiment = make_experiment(config, store, Devices.single().platform, weights)
  return dataclasses.replace(experiment, model=as_subclass(experiment.model, _MeanDropout))


def single_batch_rate(config: ml_collections.ConfigDict, batch_size: int, classes: int) -> float:
  """The initial rate of a run, lowered for a batch of few images.

  At first a net learns how often each label occurs, and the fewer labels there are, the larger such
  a step: the rate falls in proportion to the classes that the batch can hold. A rate that needs
  warm-up falls in proportion to the images (Goyal et al., arXiv 1706.02677).
  """
  rate = initial_rate(config)
  if config.optimizer.warmup_epochs:
    return rate * batch_size / config.batch_size
  return rate * min(batch_size, classes) / min(config.batch_size, classes)


def overfit(
  experiment: Experiment, state: TrainState, images: np.ndarray, labels: np.ndarray, steps: int
) -> Iterator[StepResult]:
  """Trains on one batch again and again, with the training step of a run, on one device.

  Yields:
    Loss and error before the first update and after each of at most `steps`, until the batch is
    learned or training has diverged.
  """
  devices, classes = Devices.single(), len(experiment.classes)
  program = make_program(experiment, devices, None, state)
  state = devices.replicate(to_host(state))
  positions = np.arange(len(labels), dtype=np.int32)
  batch = devices.put_batch(
    {'image': images, 'label': labels.astype(np.int32), 'position': positions}
  )
  for step in range(steps + 1):
    state, metrics = program.train_step(state, batch)
    result = StepResult(step, float(metrics['loss']), float(metrics['top1_error']))
    yield result
    if is_learned(result, classes) or has_diverged(result, classes):
      return


def is_learned(result: StepResult, classes: int) -> bool:
  return result.top1_error == 0 and result.loss < LEARNED * math.log(classes)


def has_diverged(result: StepResult, classes: int) -> bool:
  return not result.loss < DIVERGED * math.log(classes)


def judge(history: list[StepResult], classes: int, entropy: float) -> tuple[str, str]:
  """Judges the results of `overfit`: 'learned', 'plateau', 'unfinished' or 'diverged', and why."""
  last = history[-1]
  if has_diverged(last, classes):
    return 'diverged', f'the loss is {last.loss:.3g} at step {last.step:,}'
  if is_learned(last, classes):
    return 'learned', (
      f'after {last.step:,} steps every image is classified correctly, and the loss is'
      f' {last.loss:.3f}, below a tenth of ln({classes:,})'
    )
  text = (
    f'after {last.step:,} steps the loss is {last.loss:.3f}; knowing which labels occur is enough'
    f' for {entropy:.3f}.'
  )
  if min(step.loss for step in history) > PLATEAU * entropy:
    return 'plateau', f'{text} The net hardly tells the images apart'
  return 'unfinished', f'{text} The net tells images apart, but needs more steps or a lower rate'
