"""The plan of a run, printed before it starts: size, steps, learning rates, memory and disk."""

import math

import jax.numpy as jnp
import ml_collections

from alexnet_jax.data import preparation
from alexnet_jax.model import layers, nets
from alexnet_jax.terminal import Console, si
from alexnet_jax.train import schedules
from alexnet_jax.train.schedules import Calendar


def lines(
  config: ml_collections.ConfigDict, classes: int, examples: int, validation: int
) -> list[str]:
  """The plan as lines of text, for numbers of classes, training and validation images."""
  table = nets.table_of(config, classes)
  shape = (config.input.crop, config.input.crop, 3)
  calendar = Calendar(examples, config.batch_size, config.epochs)
  parameters = layers.count_parameters(table, shape)
  macs = layers.count_macs(table, shape)
  # Weights, velocity or moments, and the moving average.
  copies = (3 if config.optimizer.name == 'adam' else 2) + (config.ema_decay > 0)
  state = 4 * parameters * copies
  # 20 kB was measured for 256x256 JPEGs at quality 90: a tenth of the raw size.
  raw = (examples + validation) * config.data.image_size**2 * 3
  in_memory = config.data.source in preparation.IN_MEMORY
  stored = raw if in_memory or config.data.encoding == 'raw' else raw / 10
  resident = examples * config.data.image_size**2 * 3  # on every device, see multi_step.py
  # All layers' outputs of a (micro-)batch, which the backward pass needs.
  width = 2 if config.model.compute_dtype == 'bfloat16' else 4
  units = sum(math.prod(outputs) for _, _, outputs in layers.walk(table, shape))
  activations = units * width * config.batch_size // config.grad_accum_steps
  images = f' and {si(resident, "B")} for the training images' * (config.steps_per_call > 1)
  return [
    f'net           {nets.title(config.model)}: {parameters:,} parameters, {macs:,} MACs an image,'
    f' {classes:,} classes, input {shape[0]}x{shape[1]}, {config.model.compute_dtype}',
    f'data          {examples:,} training and {validation:,} validation images,'
    f' {config.data.image_size}x{config.data.image_size} stored',
    f'steps         {calendar.total_steps:,} of {config.batch_size} images:'
    f' {config.epochs:g} epochs of {examples / config.batch_size:,.1f} steps',
    f'learning rate {_rates(config, calendar)}',
    f'memory        about {si(4 * parameters + state, "B")} for weights, gradients and optimizer'
    f'{images} on each device,'
    f' and about {si(activations, "B")} of activations over all devices',
    f'disk          {si(stored, "B")} of prepared images'
    f'{" in memory only" * in_memory},'
    f' {si(state, "B")} a checkpoint, up to {config.checkpoint.max_to_keep + 2} of them',
    f'work          {3 * 2 * macs * examples * config.epochs:.2e} floating-point operations',
  ]


def _rates(config, calendar: Calendar) -> str:
  """The learning rate of the kernels, its changes, and those of biases and single layers."""
  rates = schedules.make_rates(config, calendar)
  schedule, text = config.optimizer.schedule, f'{schedules.initial_rate(config):g}'
  if config.optimizer.base_batch_size:
    text += (
      f' ({config.optimizer.learning_rate:g} for batches of'
      f' {config.optimizer.base_batch_size} scaled to {config.batch_size})'
    )
  if config.optimizer.warmup_epochs:
    text += f' after {config.optimizer.warmup_epochs:g} epochs of warm-up'
    text += f' from {config.optimizer.warmup_start:g}' * (config.optimizer.warmup_start > 0)
  if schedule.kind in ('cosine', 'plateau', 'polynomial'):
    text += f', {schedule.kind}'
  for step in schedules.drops(schedule, calendar)[0]:
    if step < calendar.total_steps:
      rate, epoch = float(rates.kernel(jnp.int32(step))), calendar.epoch_of(step)
      text += f', {rate:.3g} from epoch {epoch:.4g} (step {step:,})'
  if config.optimizer.bias_lr_multiplier != 1:
    text += f'; biases {config.optimizer.bias_lr_multiplier:g} times that at first'
  for name, factors in config.optimizer.layer_lr_factors.items():
    text += f'; {name} ' + ', '.join(
      f'times {factor:g} from epoch {epoch:g}' for epoch, factor in factors
    )
  return text


def show(config: ml_collections.ConfigDict, *, dry_run: bool = False) -> None:
  """Prints the plan; of data sets of known size even before they are downloaded.

  Args:
    config: validated.
    dry_run: do not download a TFDS data set whose size is not known.

  Raises:
    UserError: the data is missing and its size not known.
  """
  data = config.data
  classes, train, validation = preparation.sizes(data, None if dry_run else Console())
  examples = min(train, data.train_examples or train)
  print('\n'.join(lines(config, classes, examples, validation)), flush=True)
  if dry_run and data.source in ('folder', 'tfds'):
    print(f'store         {preparation.state(data)}', flush=True)
