"""Dense layers spread over devices learn the same as plain data parallelism and one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train import optimizer, schedules
from alexnet_jax.train.augment import Preprocessing
from alexnet_jax.train.parallel import AXIS, Devices, Layout, to_host
from alexnet_jax.train.step import Recipe, init_state, make_train_step

BATCH, SIDE, CROP, CLASSES, STEPS = 32, 14, 12, 7, 4

# As in AlexNet, dropout before and behind dense layers; 7 classes do not divide over devices.
TABLE = (
  layers.Conv('conv1', 4, 3, stride=2, init=0.05),
  layers.Relu('relu1'),
  layers.Dropout('drop1'),
  layers.Dense('fc2', 24, init=0.1, bias=0.1),
  layers.Relu('relu2'),
  layers.Dropout('drop2'),
  layers.Dense('fc3', 16, init=0.2),
  layers.Relu('relu3'),
  layers.Dense('fc4', CLASSES, init=0.3),
)
SHAPES = {
  row.name: row.parameters(inputs)
  for row, inputs, _ in layers.walk(TABLE, (CROP, CROP, 3))
  if row.parameters(inputs)
}
DECAY = optimizer.weight_decay_tree(SHAPES, 0.01, {}, biases=True)
OPTIMIZERS = {
  'momentum': optimizer.krizhevsky_momentum(0.9, DECAY),
  # At this trust some rates are clipped and others are not.
  'lars': optimizer.lars(0.9, DECAY, 0.1),
  'adam': optimizer.adam(0.9, 0.999, 1e-3, DECAY),
}


def recipe_of(name, **changes):
  preprocessing = Preprocessing(
    crop=CROP,
    mean=np.full(3, 128, np.float32),
    scale=np.full(3, 0.05, np.float32),
    colour_basis=np.diag([30, 20, 10]).astype(np.float32),
  )
  settings = {
    'seed': 3,
    'preprocessing': preprocessing,
    'colour_noise': lambda step: jnp.float32(0.1),
    'rates': schedules.Rates(0.01, 2.0, schedules.constant(), schedules.constant(), {}),
    'optimizer': OPTIMIZERS[name],
    'ema_decay': 0.5,
  }
  return Recipe(**settings | changes)


def initial_state(recipe):
  rng = np.random.default_rng(0)
  rows = {row.name: row for row in TABLE if row.name in SHAPES}
  params = {
    name: {
      'kernel': rows[name].init * rng.standard_normal(shapes['kernel'], np.float32),
      'bias': rng.uniform(0.1, 0.3, shapes['bias']).astype(np.float32),
    }
    for name, shapes in SHAPES.items()
  }
  return to_host(init_state({'params': params, 'batch_stats': {}}, recipe, {}))


def batch_of(step):
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
    'label': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'position': np.arange(BATCH, dtype=np.int32),
  }


def take_steps(count, spread, recipe, dtype=jnp.float32):
  """The last state and every step's metrics on so many devices, with dense layers spread or not."""
  on = Devices(jax.local_devices(backend='cpu')[:count])
  shards = count if spread else 1
  state = initial_state(recipe)
  layout = Layout(on, state, layers.sharded(TABLE, shards))
  model = AlexNet(TABLE, dtype, axis_name=AXIS)
  step = on.train_step(make_train_step(model, recipe, AXIS, shards), layout.axes)
  state, metrics = layout.put(state), []
  for i in range(STEPS):
    state, found = step(state, on.put_batch(batch_of(i)))
    metrics.append(to_host(found))
  if spread:
    assert state.params['fc2']['kernel'].shape == (count, 5 * 5 * 4, 24 // count)
    assert state.params['fc2']['bias'].shape == (count, 24 // count)
    assert state.ema['fc3']['kernel'].shape == (count, 24, 16 // count)
    assert state.params['fc4']['kernel'].shape == (16, CLASSES)  # stays whole
  return to_host(layout.whole(state)), metrics


@functools.cache
def plain(count, name, **changes):
  return take_steps(count, False, recipe_of(name, **changes))


def assert_close(found, expected, tolerance=1e-5):
  """Every leaf agrees, relative to its largest element."""

  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(np.abs(b).max(), 1e-6)
    np.testing.assert_allclose(
      a / scale, b / scale, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(compare, found, expected)


@pytest.mark.parametrize('count', [8, 2])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_spread_layers_learn_the_same(count, name):
  """Masks, loss, gradients and their norm, LARS's norms, decay and averages of all are the same."""
  found = take_steps(count, True, recipe_of(name))
  assert_close(found, plain(1, name))
  if count == 8:
    assert_close(found, plain(8, name))
