"""Dense layers sharded over devices learn the same as plain data parallelism and one device."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sent_bytes
from helpers.closeness import assert_close
from helpers.tiny_training import (
  CLASSES,
  CROP,
  batch_of,
  decay_of,
  devices,
  initial_state,
  recipe_of,
)

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train import modes, optimizer
from alexnet_jax.train.devices import AXIS, to_host
from alexnet_jax.train.loop import make_program
from alexnet_jax.train.sharded_dense import DenseSharding, sharded_layers

STEPS = 4

# As in AlexNet, dropout before and behind dense layers; 7 classes do not divide over devices.
TABLE = (
  layers.Conv('conv1', 4, 3, stride=2, init=0.05),
  layers.Relu('relu1'),
  layers.Dropout('drop1'),
  layers.Dense('fc2', 24, init=0.1, bias=0.1),
  layers.Relu('relu2'),
  layers.Dropout('drop2'),
  layers.Dense('fc3', 16, init=0.2, bias=0.2),
  layers.Relu('relu3'),
  layers.Dense('fc4', CLASSES, init=0.3),
)
DECAY = decay_of(TABLE, biases=True)
OPTIMIZERS = {
  'momentum': optimizer.krizhevsky_momentum(0.9, DECAY),
  # At this trust some rates are clipped and others are not.
  'larc': optimizer.larc(0.9, DECAY, 0.1),
  'adam': optimizer.adam(0.9, 0.999, 1e-3, DECAY),
}


def make_recipe(**changes):
  return recipe_of(TABLE, 0.05, ema_decay=0.5, **{'optimizer': OPTIMIZERS['momentum'], **changes})


def program_of(on, sharded, recipe, dtype=jnp.float32, micro_batches=1):
  """The program of a run on these devices."""
  config = configs.default()
  config.model.shard_dense, config.grad_accum_steps = sharded, micro_batches
  model = AlexNet(TABLE, dtype, axis_name=AXIS)
  experiment = SimpleNamespace(config=config, table=TABLE, model=model, recipe=recipe)
  return make_program(experiment, on, None, initial_state(TABLE, recipe))


def take_steps(count, sharded, recipe, dtype=jnp.float32, **more):
  """The last state and the metrics of every step, with dense layers sharded or not."""
  on = devices(count)
  program = program_of(on, sharded, recipe, dtype, **more)
  state, metrics = on.replicate(initial_state(TABLE, recipe)), []
  for i in range(STEPS):
    state, found = program.train_step(state, on.put_batch(batch_of(i)))
    metrics.append(to_host(found))
  if sharded:
    assert state.params['fc2']['kernel'].shape == (count, 5 * 5 * 4, 24 // count)
    assert state.params['fc2']['bias'].shape == (count, 24 // count)
    assert state.ema['fc3']['kernel'].shape == (count, 24, 16 // count)
    assert state.params['fc4']['kernel'].shape == (16, CLASSES)
  return to_host(program.replicated(state)), metrics


@functools.cache
def plain(count, name):
  return take_steps(count, False, make_recipe(optimizer=OPTIMIZERS[name]))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_sharded_layers_learn_the_same(name):
  """Masks, loss, gradients and their norm, LARC's norms, decay and averages of all are the same."""
  found = take_steps(8, True, make_recipe(optimizer=OPTIMIZERS[name]))
  assert_close(found, plain(1, name))
  if name == 'momentum':  # that one device and many agree is tested in test_step.py
    assert_close(found, plain(8, name))


def test_accumulated_gradients_of_sharded_layers_add_up():
  assert_close(take_steps(2, True, make_recipe(), micro_batches=4), plain(1, 'momentum'))


def test_bfloat16_is_as_close_as_without_sharding():
  recipe = make_recipe()
  expected = plain(1, 'momentum')
  errors = [take_steps(8, sharded, recipe, jnp.bfloat16) for sharded in (False, True)]
  losses = [[m['loss'] - e['loss'] for m, e in zip(e[1], expected[1], strict=True)] for e in errors]
  assert 1e-5 < np.abs(losses[0]).max() < 0.05 and np.abs(losses[1]).max() < 0.05
  assert_close(errors[1][0].params, errors[0][0].params, tolerance=0.03)


def test_what_is_not_finite_on_one_device_stops_all():
  """The gradient of one column of fc3 is too large to be squared, all else is well."""
  on, recipe = devices(8), make_recipe()
  state = initial_state(TABLE, recipe)
  fc2, fc3, fc4 = (state.params[name] for name in ('fc2', 'fc3', 'fc4'))
  fc2['bias'][0] = 1e25
  fc3['kernel'][0] = 0  # so that nothing behind sees it
  fc4['kernel'][1:] = 0  # and only column 0, on device 0, has a gradient
  program = program_of(on, True, recipe)
  after, metrics = program.train_step(on.replicate(state), on.put_batch(batch_of(0)))
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['gradient_norm'])
  assert float(metrics['nonfinite_steps']) == 1
  jax.tree.map(
    np.testing.assert_array_equal, to_host(program.replicated(after).params), state.params
  )


def test_gathering_is_the_inverse_of_sharding():
  state = initial_state(TABLE, make_recipe(optimizer=OPTIMIZERS['adam']))
  on = devices(8)
  sharding = DenseSharding(on, state, sharded_layers(TABLE, 8))
  assert sharding.sharded == ('fc2', 'fc3')
  sharded = sharding.shard_state(on.replicate(state))
  third = np.asarray(sharded.params['fc2']['kernel'][3])
  np.testing.assert_array_equal(third, state.params['fc2']['kernel'][:, 9:12])
  gathered = sharding.gather_state(sharded)
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))
  jax.tree.map(np.testing.assert_array_equal, to_host(gathered), state)


@pytest.mark.parametrize(
  'count, net, classes, sharded',
  [
    (8, 'krizhevsky2012', 1000, 'fc6, fc7, fc8'),
    (8, 'digits', 10, 'fc4'),  # fc5 does not divide
    (1, 'cifar_18pct', 10, None),
    (2, 'cifar_18pct', 10, 'fc10'),
    (8, 'cifar_18pct', 10, UserError),
  ],
)
def test_what_can_be_sharded(count, net, classes, sharded):
  config = configs.default()
  config.model.net, config.model.shard_dense = net, True
  experiment = SimpleNamespace(config=config, table=nets.NETS[net](classes))
  if sharded == UserError:
    with pytest.raises(UserError, match='8 devices do not .*any dense .*10.*=False') as error:
      modes.check(experiment, None, devices(count))
    assert '\n' not in str(error.value)
  else:
    notes = [f'dense layers sharded over {count} devices: {sharded}'] * bool(sharded)
    assert modes.check(experiment, None, devices(count)) == notes


# Bytes sent.


def test_the_compiled_program_sends_what_the_formula_says():
  """Two ways to the same numbers, on 8 devices with 4 images each."""
  on, recipe = devices(8), make_recipe()
  for sharded in (False, True):
    step = program_of(on, sharded, recipe).train_step
    program = step.compiled(initial_state(TABLE, recipe), on.put_batch(batch_of(0)))
    expected = sent_bytes.bytes_by_formula(TABLE, (CROP, CROP, 3), 'float32', 8, 4, sharded)
    assert sent_bytes.bytes_in_program(program.as_text(), 8) == pytest.approx(expected, rel=1e-12)
    assert (expected['all-to-all'] > 0) == sharded


def test_bytes_of_alexnet_by_hand():
  """60,965,224 parameters; inputs of fc6, fc7 and fc8 are 9,216, 4,096 and 4,096 numbers."""
  table, shape = nets.krizhevsky2012(1000), (224, 224, 3)
  plain_bytes = sent_bytes.bytes_by_formula(table, shape, 'float32', 8, 128, False)
  assert sum(plain_bytes.values()) == 2 * 7 / 8 * 4 * 60_965_224
  dense = (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
  found = sent_bytes.bytes_by_formula(table, shape, 'float32', 8, 128, True)
  assert found == {
    'all-reduce': 2 * 7 / 8 * 4 * (60_965_224 - dense),
    'all-gather': 7 * 128 * 4 * (9216 + 4096 + 4096),
    'reduce-scatter': 7 * 128 * 4 * (9216 + 4096 + 4096),
    'all-to-all': 2 * 7 / 8 * 128 * 4 * (4096 + 4096 + 1000),
  }
  half = sent_bytes.bytes_by_formula(table, shape, 'bfloat16', 8, 128, True)
  assert half['all-gather'] == found['all-gather'] / 2
  assert half['all-to-all'] == 2 * 7 / 8 * 128 * (2 * 4096 + 2 * 4096 + 4 * 1000)


def test_operations_are_read_from_a_program():
  program = """
  %all-reduce.8 = (f32[128,10]{1,0}, f32[], /*index=2*/bf16[6]{0}) all-reduce(f32[128,10]{1,0} %a)
  %x.1 = f32[128,10]{1,0} get-tuple-element(%all-reduce.8), index=0
  %gather = f32[16,5]{1,0} all-gather(f32[2,5]{1,0} %x), dimensions={0}
  ROOT %scatter = f32[2,5]{1,0} reduce-scatter(%gather), dimensions={0}
  %swap = (f32[2,16]{1,0}, f32[2,16]{1,0}) all-to-all(%b, %c)
  """
  assert sent_bytes.bytes_in_program(program, 4) == {
    'all-reduce': 1.5 * (4 * 1280 + 2 * 6),
    'all-gather': 0.75 * 4 * 80,
    'reduce-scatter': 3 * 4 * 10,
    'all-to-all': 0.75 * 4 * 64,
  }
  with pytest.raises(ValueError, match='collective-permute'):
    sent_bytes.bytes_in_program('%p = f32[4]{0} collective-permute(%x)', 4)
