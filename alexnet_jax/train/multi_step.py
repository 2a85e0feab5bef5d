"""Training steps as the host asks for them: one a call, or many without it.

A small net's step takes a GPU less time than its launch takes the host. With `steps_per_call` above
1 all training images are put on every device, once, and a call brings row numbers only: the devices
pick the images and repeat the very step that is otherwise called for each batch. How many steps a
call makes is data and no part of the program, so that the same loop body makes them all.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.data import feed
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import si
from alexnet_jax.train.devices import Devices, Layout
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.step import TrainState


def calls(start: int, end: int, most: int, is_milestone: Callable[[int], bool]) -> Iterator[range]:
  """The steps from `start` to before `end` in ranges: `most` a call, fewer before a milestone.

  Args:
    start, end: numbers of steps made before and after.
    most: steps a call may make.
    is_milestone: number of steps made -> whether the host has something to do then.
  """
  first = start
  for made in range(start + 1, end + 1):
    if made - first == most or made == end or is_milestone(made):
      yield range(first, made)
      first = made


def check_room(config, split: Split, devices: Devices) -> None:
  """Raises UserError if the training images are to lie on devices that have no room for them."""
  size, limit = math.prod(split.images.shape), devices.memory_bytes()
  if config.steps_per_call > 1 and limit is not None and size > limit:
    raise UserError(
      f'config.steps_per_call={config.steps_per_call} keeps the {len(split):,} training images on'
      f' every device: they take {si(size, "B")}, a device has {si(limit, "B")}; use'
      ' --config.steps_per_call=1, or fewer or smaller images'
      ' (data.train_examples, data.image_size)'
    )


def prepare_calls(
  experiment: Experiment,
  split: Split,
  devices: Devices,
  start: int,
  steps: Iterable[range],
  state: TrainState,
) -> tuple[feed.Batches, Callable[[TrainState, dict], tuple[TrainState, dict]], Layout]:
  """What the calls of training read, and the program that makes their steps.

  Args:
    experiment: the run; `config.steps_per_call` decides.
    split: rows to learn from.
    devices: what computes.
    start: number of the first step.
    steps: those of each call, see `calls`.
    state: any whole state of the run; only its structure matters.

  Returns:
    (batches, train, layout): one of `batches` for each call, to be put on the devices, and
    train(state, batch) -> (state, metrics), each metric a scalar if calls make one step, else
    (steps_per_call,), of which as many count as the call made steps; and how states lie there.
  """
  config = experiment.config
  step, layout = experiment.step_and_layout(devices, state)
  settings = {
    'seed': config.seed,
    'batch_size': config.batch_size,
    'process_index': devices.process_index,
    'process_count': devices.process_count,
  }
  if config.steps_per_call == 1:
    batches = feed.train_batches(split, start_step=start, **settings)
    return batches, devices.train_step(step, layout.axes, cache=not experiment.model.onednn), layout
  examples = devices.replicate({'image': feed.all_images(split), 'label': split.labels})
  train = devices.train_steps(
    make_train_steps(step), layout.axes, cache=not experiment.model.onednn
  )
  batches = feed.train_rows(len(split), calls=steps, most=config.steps_per_call, **settings)
  return batches, lambda state, batch: train(state, examples, batch), layout


def make_train_steps(train_step):
  """(state, examples, batch) -> (state, metrics): some steps, one after another.

  Args:
    train_step: (state, {'image', 'label', 'position'}) -> (state, metrics).

  Returns:
    A function of a state; examples `image` uint8 (N, S, S, 3) and `label` int32 (N,); and a batch
    of `row` int32 (b, K), a column for each step and -1 in the columns of none, with `position`
    int32 (b,), the places in the global batch. Metrics have a leading axis K, 0 where no step was.
  """

  def train_steps(state, examples, batch):
    rows = batch['row']

    def example_batch(step):
      chosen = {name: array.at[rows[:, step]].get(mode='clip') for name, array in examples.items()}
      return chosen | {'position': batch['position']}

    def make_step(step, made):
      state, metrics = made
      state, latest = train_step(state, example_batch(step))
      return state, jax.tree.map(lambda all_, one: all_.at[step].set(one), metrics, latest)

    _, one = jax.eval_shape(train_step, state, example_batch(0))
    metrics = jax.tree.map(lambda x: jnp.zeros((rows.shape[1], *x.shape), x.dtype), one)
    return lax.fori_loop(0, jnp.sum(rows[0] >= 0), make_step, (state, metrics))

  return train_steps
