"""Dense layers spread over devices learn the same as plain data parallelism and one device."""

import functools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.closeness import assert_close

from alexnet_jax import config as configs
from alexnet_jax.benchmarks import compiled
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.train import optimizer, schedules
from alexnet_jax.train.devices import AXIS, Devices, Layout, to_host
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
    color_basis=np.diag([30, 20, 10]).astype(np.float32),
  )
  settings = {
    'seed': 3,
    'preprocessing': preprocessing,
    'color_noise': lambda step: jnp.float32(0.1),
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


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_spread_layers_learn_the_same(name):
  """Masks, loss, gradients and their norm, LARS's norms, decay and averages of all are the same."""
  found = take_steps(8, True, recipe_of(name))
  assert_close(found, plain(1, name))
  if name == 'momentum':  # that one device and many agree is tested in test_step.py
    assert_close(found, plain(8, name))


def test_accumulated_gradients_of_spread_layers_add_up():
  assert_close(take_steps(2, True, recipe_of('momentum', grad_accum_steps=4)), plain(1, 'momentum'))


def test_bfloat16_is_as_close_as_it_is_without():
  recipe = recipe_of('momentum')
  expected = plain(1, 'momentum')
  errors = [take_steps(8, spread, recipe, jnp.bfloat16) for spread in (False, True)]
  losses = [[m['loss'] - e['loss'] for m, e in zip(e[1], expected[1], strict=True)] for e in errors]
  assert 1e-5 < np.abs(losses[0]).max() < 0.05 and np.abs(losses[1]).max() < 0.05
  assert_close(errors[1][0].params, errors[0][0].params, tolerance=0.03)


def test_what_is_not_finite_on_one_device_stops_all():
  """The gradient of one column of fc3 is too large to be squared, all else is well."""
  on, recipe = Devices(jax.local_devices(backend='cpu')[:8]), recipe_of('momentum')
  state = initial_state(recipe)
  fc2, fc3, fc4 = (state.params[name] for name in ('fc2', 'fc3', 'fc4'))
  fc2['bias'][0] = 1e25
  fc3['kernel'][0] = 0  # so that nothing behind sees it
  fc4['kernel'][1:] = 0  # and only column 0, on device 0, has a gradient
  layout = Layout(on, state, ('fc2', 'fc3'))
  step = on.train_step(
    make_train_step(AlexNet(TABLE, axis_name=AXIS), recipe, AXIS, shards=8), layout.axes
  )
  after, metrics = step(layout.put(state), on.put_batch(batch_of(0)))
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['gradient_norm'])
  assert float(metrics['nonfinite_steps']) == 1
  jax.tree.map(np.testing.assert_array_equal, to_host(layout.whole(after).params), state.params)


def test_a_state_comes_back_as_it_was_put():
  """In the layout that every topology knows, bit for bit, wherever the layers' names stand."""
  state = initial_state(recipe_of('adam'))
  on = Devices(jax.local_devices(backend='cpu')[:8])
  layout = Layout(on, state, layers.sharded(TABLE, 8))
  assert layout.sharded == ('fc2', 'fc3')
  lying = layout.put(state)
  expected = {leaf.shape for leaf in jax.tree.leaves(layout.shapes(state))}
  assert {leaf.shape for leaf in jax.tree.leaves(lying)} == expected
  third = np.asarray(lying.params['fc2']['kernel'][3])
  np.testing.assert_array_equal(third, state.params['fc2']['kernel'][:, 9:12])
  whole = layout.whole(lying)
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))
  jax.tree.map(np.testing.assert_array_equal, to_host(whole), state)


# What can be spread.


def config_of(net, classes, shard_dense=True):
  config = configs.default()
  config.model.net, config.data.num_classes = net, classes
  config.model.shard_dense = shard_dense
  return config


@pytest.mark.parametrize(
  'count, net, classes, shard_dense, shards',
  [
    (8, 'krizhevsky2012', 1000, True, 8),
    (8, 'krizhevsky2012', 1000, False, 1),
    (8, 'digits', 10, True, 8),  # fc4 divides, fc5 does not
    (1, 'cifar_18pct', 10, True, 1),
    (2, 'cifar_18pct', 10, True, 2),
    (8, 'cifar_18pct', 0, True, 8),  # it may
    (8, 'cifar_18pct', 10, False, 1),
  ],
)
def test_layers_are_spread_as_far_as_they_divide(count, net, classes, shard_dense, shards):
  devices = Devices(jax.local_devices(backend='cpu')[:count])
  assert devices.dense_shards(config_of(net, classes, shard_dense)) == shards


def test_a_net_that_does_not_divide_is_refused():
  devices = Devices(jax.local_devices(backend='cpu')[:8])
  with pytest.raises(UserError, match='8 devices divide .* no dense layer .*10.*=False') as error:
    devices.dense_shards(config_of('cifar_18pct', 10))
  assert '\n' not in str(error.value)


# Bytes sent.


def test_the_compiled_program_sends_what_the_formula_says():
  """Two ways to the same numbers, on 8 devices with 4 images each."""
  recipe = recipe_of('momentum')
  on, state = Devices(jax.local_devices(backend='cpu')[:8]), initial_state(recipe)
  for sharded in (False, True):
    shards = 8 if sharded else 1
    layout = Layout(on, state, layers.sharded(TABLE, shards))
    step = make_train_step(AlexNet(TABLE, axis_name=AXIS), recipe, AXIS, shards)
    batch = on.put_batch(batch_of(0))
    program = on.train_step(step, layout.axes).compiled(layout.shapes(state), batch)
    expected = compiled.sent(TABLE, (CROP, CROP, 3), 'float32', 8, 4, sharded)
    assert compiled.counted(program.as_text(), 8) == pytest.approx(expected, rel=1e-12)
    assert (expected['all-to-all'] > 0) == sharded


def test_bytes_of_alexnet_by_hand():
  """60,965,224 parameters; inputs of fc6, fc7 and fc8 are 9,216, 4,096 and 4,096 numbers."""
  table, shape = nets.krizhevsky2012(1000), (224, 224, 3)
  plain_bytes = compiled.sent(table, shape, 'float32', 8, 128, False)
  assert sum(plain_bytes.values()) == 2 * 7 / 8 * 4 * 60_965_224
  dense = (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
  found = compiled.sent(table, shape, 'float32', 8, 128, True)
  assert found == {
    'all-reduce': 2 * 7 / 8 * 4 * (60_965_224 - dense),
    'all-gather': 7 * 128 * 4 * (9216 + 4096 + 4096),
    'reduce-scatter': 7 * 128 * 4 * (9216 + 4096 + 4096),
    'all-to-all': 2 * 7 / 8 * 128 * 4 * (4096 + 4096 + 1000),
  }
  half = compiled.sent(table, shape, 'bfloat16', 8, 128, True)
  assert half['all-gather'] == found['all-gather'] / 2
  assert half['all-to-all'] == 2 * 7 / 8 * 128 * (2 * 4096 + 2 * 4096 + 4 * 1000)


@pytest.mark.parametrize('devices', [8, 1024])
def test_sharding_pays_up_to_the_batch_that_is_said(devices):
  table, shape = nets.krizhevsky2012(1000), (224, 224, 3)
  row = compiled.scale(table, shape, 'float32', devices)
  for images in (math.floor(row['pays_up_to']), math.floor(row['pays_up_to']) + 1):
    spread, whole = (
      sum(compiled.sent(table, shape, 'float32', devices, images, sharded).values())
      for sharded in (True, False)
    )
    assert (spread <= whole) == (images <= row['pays_up_to'])
    assert whole == row['plain']


def test_operations_are_read_from_a_program():
  program = """
  %all-reduce.8 = (f32[128,10]{1,0}, f32[], /*index=2*/bf16[6]{0}) all-reduce(f32[128,10]{1,0} %a)
  %x.1 = f32[128,10]{1,0} get-tuple-element(%all-reduce.8), index=0
  %gather = f32[16,5]{1,0} all-gather(f32[2,5]{1,0} %x), dimensions={0}
  ROOT %scatter = f32[2,5]{1,0} reduce-scatter(%gather), dimensions={0}
  %swap = (f32[2,16]{1,0}, f32[2,16]{1,0}) all-to-all(%b, %c)
  """
  assert compiled.counted(program, 4) == {
    'all-reduce': 1.5 * (4 * 1280 + 2 * 6),
    'all-gather': 0.75 * 4 * 80,
    'reduce-scatter': 3 * 4 * 10,
    'all-to-all': 0.75 * 4 * 64,
  }
  with pytest.raises(ValueError, match='collective-permute'):
    compiled.counted('%p = f32[4]{0} collective-permute(%x)', 4)


@pytest.mark.slow
def test_the_command_shows_what_is_sent(tmp_path):
  command = ['-m', 'alexnet_jax.benchmark', 'communication', '--config=configs/digits.py']
  finished = subprocess.run(
    [sys.executable, *command, '--batch_sizes=16', f'--json={tmp_path}/sent.json'],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stderr
  (result,) = json.loads((tmp_path / 'sent.json').read_text())['results']
  result = result['details']
  assert set(result['compiled']) == {'plain', 'dense layers sharded'}
  for mode, values in result['compiled'].items():
    assert values == pytest.approx(result['formula'][mode], rel=1e-12)
  assert [row['devices'] for row in result['scaling']] == [8, 32, 128, 512, 1024]
  assert 'all-to-all' in finished.stdout and '1,024' in finished.stdout
