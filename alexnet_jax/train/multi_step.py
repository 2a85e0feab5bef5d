"""Several training steps in one call of the devices, with `steps_per_call` above 1.

A small net's step takes a GPU less time than its launch takes the host. So all training images are
copied to every device once, a call brings only row numbers, and the devices gather the images and
repeat the usual step. The number of steps of a call is data, not a constant of the program, so that
one loop body makes all steps of a run.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.data import feed, order
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import si
from alexnet_jax.train.devices import Devices
from alexnet_jax.train.step import Program


def calls(start: int, end: int, most: int, is_due: Callable[[int], bool]) -> Iterator[range]:
  """Divides the steps from `start` up to `end` into calls.

  Args:
    start, end: steps taken before the first call and after the last.
    most: the largest number of steps of a call.
    is_due: whether a call has to end after this number of steps.

  Yields:
    The steps of each call.
  """
  first = start
  for taken in range(start + 1, end + 1):
    if taken - first == most or taken == end or is_due(taken):
      yield range(first, taken)
      first = taken


def check_memory(config, split: Split, devices: Devices) -> None:
  """Raises UserError if the images do not fit a device."""
  size, limit = math.prod(split.images.shape), devices.memory_bytes()
  if limit is not None and size > limit:
    raise UserError(
      f'config.steps_per_call={config.steps_per_call} copies the {len(split):,} training images to'
      f' every device: they take {si(size, "B")}, a device has {si(limit, "B")}; use'
      ' --config.steps_per_call=1, or fewer or smaller images'
      ' (data.train_examples, data.image_size)'
    )


def add_examples(program: Program, config, devices: Devices, split: Split) -> Program:
  """Feeds a program whose step is of `make_train_steps`: all images once, then row numbers."""
  # In flat rows, which are gathered as they lie: a TPU copies other images in every call, to a
  # layout in which it can.
  examples = {
    'image': devices.per_device(feed.all_images(split).reshape(len(split), -1)),
    'label': devices.per_device(split.labels),
  }

  def make_batches(start, end, is_due):
    ends, ranges = itertools.tee(calls(start, end, config.steps_per_call, is_due))
    return (call.stop for call in ends), train_rows(len(split), config, devices, ranges)

  def train_step(state, batch):
    return program.train_step(state, batch | {'examples': examples})

  return dataclasses.replace(program, train_step=train_step, make_batches=make_batches)


def train_rows(n: int, config, devices: Devices, calls: Iterable[range]) -> feed.Batches:
  """The rows that `feed.train_batches` would read of `n`, for each call.

  Returns:
    An iterator of dicts: `row` int32 (b, K), a column for each step, -1 in those beyond the last;
    `position` int32 (b,) as of `feed.train_batches`.
  """
  mine = feed.part_of_batch(config.batch_size, devices.process_index, devices.process_count)
  positions = np.arange(mine.start, mine.stop, dtype=np.int32)

  def make(steps: range) -> feed.Batch:
    rows = np.full((len(positions), config.steps_per_call), -1, np.int32)
    for column, step in enumerate(steps):
      rows[:, column] = order.rows(config.seed, step, config.batch_size, n)[mine]
    return {'row': rows, 'position': positions.copy()}

  return feed.Batches(None, make, calls)


def make_train_steps(train_step):
  """Builds a step that repeats a training step.

  Args:
    train_step: (state, {'image', 'label', 'position'}) -> (state, metrics).

  Returns:
    (state, batch) -> (state, metrics). `batch` has examples, {'image': uint8 (N, S*S*3), 'label':
    int32 (N,)}; row int32 (b, K), a column of row numbers for each step, and columns of -1 behind
    the last step; position int32 (b,), those in the global batch. Metrics have a leading axis
    K, and are 0 where there was no step.
  """

  def train_steps(state, batch):
    rows = batch['row']

    def batch_of(step):
      chosen = {
        name: array.at[rows[:, step]].get(mode='clip') for name, array in batch['examples'].items()
      }
      side = math.isqrt(chosen['image'].shape[1] // 3)
      images = chosen['image'].reshape(-1, side, side, 3)
      return chosen | {'image': images, 'position': batch['position']}

    def body(step, carry):
      state, metrics = carry
      state, latest = train_step(state, batch_of(step))
      return state, jax.tree.map(lambda all_, one: all_.at[step].set(one), metrics, latest)

    _, one = jax.eval_shape(train_step, state, batch_of(0))
    metrics = jax.tree.map(lambda x: jnp.zeros((rows.shape[1], *x.shape), x.dtype), one)
    return lax.fori_loop(0, jnp.sum(rows[0] >= 0), body, (state, metrics))

  return train_steps
