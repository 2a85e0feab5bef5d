"""The train step and the evaluation: the same numbers on any number of devices, counted once."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.closeness import assert_close
from helpers.tiny_training import (
  BATCH,
  CLASSES,
  CROP,
  SIDE,
  batch_of,
  devices,
  initial_state,
  recipe_of,
)
from jax.sharding import Mesh, PartitionSpec

from alexnet_jax import config as configs
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train import evaluation
from alexnet_jax.train.devices import AXIS, check_training_batch, pmean, to_host
from alexnet_jax.train.grad_accum import accumulate
from alexnet_jax.train.step import make_compute_gradients, make_train_step

PLAIN = (
  layers.Conv('conv1', 8, 3, stride=2, init=0.02),
  layers.Relu('relu1'),
  layers.Dropout('drop1'),
  layers.Dense('fc2', CLASSES, init=0.05),
)
NORMALIZED = (*PLAIN[:2], layers.BatchNorm('bn1'), *PLAIN[2:])


def step_of(table, recipe, ghost_batch=0, micro_batches=1):
  model = AlexNet(table, axis_name=AXIS, ghost_batch=ghost_batch)
  compute_gradients = make_compute_gradients(model, recipe)
  if micro_batches > 1:
    compute_gradients = accumulate(compute_gradients, micro_batches)
  return make_train_step(recipe, compute_gradients, pmean)


def make_run(table, count, ghost_batch=0, micro_batches=1):
  """A compiled run of three steps on `count` devices.

  Returns:
    A function that gives the last state and the metrics of every step, on the host.
  """
  on, recipe = devices(count), recipe_of(table)
  step = step_of(table, recipe, ghost_batch, micro_batches)
  step = on.pmap(step, in_axes=(None, 0), out_axes=None, donate_argnums=0)

  def run():
    state, metrics = on.replicate(initial_state(table, recipe)), []
    for i in range(3):
      state, found = step(state, on.put_batch(batch_of(i)))
      metrics.append(to_host(found))
    return to_host(state), metrics

  return run


@pytest.fixture(scope='module')
def runs():
  """Runs by kind and number of devices, each compiled once."""
  kinds = {'plain': (PLAIN, 0), 'norm': (NORMALIZED, 0), 'ghost': (NORMALIZED, 4)}

  @functools.cache
  def run(kind, count):
    table, ghost_batch = kinds[kind]
    return make_run(table, count, ghost_batch)

  return run


# Devices.


@pytest.mark.parametrize('kind', ['plain', 'norm', 'ghost'])
def test_eight_devices_are_one(runs, kind):
  """The same crops, noise, dropped units, moments, gradients and metrics."""
  state, metrics = runs(kind, 1)()
  assert_close(runs(kind, 8)(), (state, metrics))
  assert int(state.step) == 3
  start = initial_state(NORMALIZED if kind != 'plain' else PLAIN, recipe_of(PLAIN))
  for part in ('params', 'batch_stats'):
    for a, b in zip(*(jax.tree.leaves(getattr(s, part)) for s in (state, start)), strict=True):
      assert not np.array_equal(a, b)
  documented = {'loss', 'top1_error', 'gradient_norm', 'learning_rate', 'nonfinite_steps'}
  assert set(metrics[0]) >= documented


def test_moments_are_of_the_global_batch_unless_a_ghost_batch_is_asked_for(runs):
  with pytest.raises(AssertionError):
    assert_close(runs('norm', 8)(), runs('ghost', 8)(), tolerance=1e-3)


def test_the_step_runs_under_shard_map(runs):
  mesh = Mesh(np.array(jax.local_devices(backend='cpu')[:8]), (AXIS,))
  replicated, split = PartitionSpec(), PartitionSpec(AXIS)
  recipe = recipe_of(NORMALIZED)
  step = jax.jit(
    jax.shard_map(
      step_of(NORMALIZED, recipe),
      mesh=mesh,
      in_specs=(replicated, split),
      out_specs=(replicated, replicated),
      check_vma=False,
    )
  )
  state, metrics = initial_state(NORMALIZED, recipe), []
  for i in range(3):
    state, found = step(state, batch_of(i))
    metrics.append(found)
  assert_close(to_host((state, metrics)), runs('norm', 8)())


@pytest.mark.parametrize('kind', ['plain', 'norm'])
def test_the_same_states_and_batches_give_the_same_bits(runs, kind):
  run = runs(kind, 8)
  jax.tree.map(np.testing.assert_array_equal, run(), run())


# What a step is.


def test_a_step_is_the_loss_gradient_and_update_of_its_views():
  """Against the formulas, put together here, for a net without dropout."""
  table = tuple(row for row in PLAIN if not isinstance(row, layers.Dropout))
  recipe = recipe_of(table, color_noise=lambda step: jnp.float32(0), label_smoothing=0.1)
  recipe = dataclasses.replace(
    recipe,
    preprocessing=dataclasses.replace(recipe.preprocessing, random_crop=False, random_flip=False),
  )
  start, batch = initial_state(table, recipe), batch_of(0)
  start = start.replace(plateau={'scale': np.float32(0.5)})  # halves all rates
  views = batch['image'][:, 1:13, 1:13].astype(np.float32) - 128

  def loss_of(params):
    logits = AlexNet(table).apply({'params': params}, views)
    log_shares = logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))
    own = log_shares[jnp.arange(BATCH), batch['label']]
    return -jnp.mean(0.9 * own + 0.1 * log_shares.mean(1)), logits

  (loss, logits), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(start.params)
  step = jax.jit(
    make_train_step(recipe, make_compute_gradients(AlexNet(table), recipe), lambda tree: tree)
  )
  state, metrics = step(start, batch)
  assert float(metrics['loss']) == pytest.approx(float(loss), rel=1e-5)
  assert float(metrics['top1_error']) == pytest.approx(
    np.mean(np.argmax(logits, 1) != batch['label'])
  )
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients)))
  assert float(metrics['gradient_norm']) == pytest.approx(norm, rel=1e-5)
  assert float(metrics['learning_rate']) == pytest.approx(0.005)
  for layer, leaves in gradients.items():
    w = start.params[layer]
    expected = {
      'kernel': w['kernel'] - 0.005 * (leaves['kernel'] + 0.01 * w['kernel']),
      'bias': w['bias'] - 0.01 * leaves['bias'],
    }
    assert_close(to_host(state.params[layer]), expected)


@pytest.mark.parametrize(
  'kind, table, ghost_batch', [('plain', PLAIN, 0), ('ghost', NORMALIZED, 4)]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(runs, kind, table, ghost_batch):
  parts = make_run(table, 1, ghost_batch, micro_batches=8)
  assert_close(parts(), runs(kind, 1)())


@pytest.mark.usefixtures('compiled_for')
def test_a_gradient_that_is_not_finite_on_one_device_stops_all():
  on, recipe = devices(2), recipe_of(PLAIN)
  compute_gradients = make_compute_gradients(AlexNet(PLAIN), recipe)

  def overflowing(state, batch):
    (gradients, metrics), batch_stats = compute_gradients(state, batch)
    bias = gradients['fc2']['bias']
    bias = bias.at[0].set(jnp.where(jax.lax.axis_index(AXIS) == 1, jnp.inf, bias[0]))
    return (gradients | {'fc2': gradients['fc2'] | {'bias': bias}}, metrics), batch_stats

  step = make_train_step(recipe, overflowing, pmean)
  before = initial_state(PLAIN, recipe)
  after, metrics = on.pmap(step, in_axes=(None, 0), out_axes=None)(
    on.replicate(before), on.put_batch(batch_of(0))
  )
  assert np.isfinite(metrics['loss']) and metrics['nonfinite_steps'] == 1
  jax.tree.map(np.testing.assert_array_equal, to_host(after).params, to_host(before).params)


def test_a_step_that_is_not_finite_is_not_applied():
  def noise(step):
    return jnp.where((step == 1) | (step == 2), jnp.nan, 0.1)

  on, recipe = devices(2), recipe_of(NORMALIZED, color_noise=noise, ema_decay=0.3)
  step = on.pmap(step_of(NORMALIZED, recipe), in_axes=(None, 0), out_axes=None, donate_argnums=0)
  state = on.replicate(initial_state(NORMALIZED, recipe))
  states, skipped = [], []
  for i in range(5):
    state, metrics = step(state, on.put_batch(batch_of(i)))
    states.append(to_host(state))
    skipped.append(float(metrics['nonfinite_steps']))
    assert np.isfinite(metrics['loss']) == (i not in (1, 2))
  assert skipped == [0, 1, 2, 0, 0] == [int(s.nonfinite_steps) for s in states]
  assert [int(s.step) for s in states] == [1, 2, 3, 4, 5]  # the calendar goes on
  for kept in ('params', 'batch_stats', 'opt_state', 'ema'):
    for i in (1, 2):
      jax.tree.map(
        np.testing.assert_array_equal, getattr(states[i], kept), getattr(states[0], kept)
      )
  assert not np.array_equal(
    states[3].params['conv1']['kernel'], states[0].params['conv1']['kernel']
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[4]))
  # The average that is evaluated: slow from the first applied step on, and sooner at the start.
  average = initial_state(NORMALIZED, recipe).params['conv1']['kernel']
  for i in (0, 3, 4):
    decay = min(0.3, (1 + i) / (10 + i))
    average = decay * average + (1 - decay) * states[i].params['conv1']['kernel']
    np.testing.assert_allclose(states[i].eval_params['conv1']['kernel'], average, rtol=1e-5)


@pytest.mark.parametrize(
  'device_count, batch_size, grad_accum_steps, ghost_batch, message',
  [
    (8, 64, 1, 0, ''),
    (8, 64, 1, 8, ''),
    (8, 64, 1, 4, ''),
    (1, 64, 4, 16, ''),
    (2, 64, 4, 8, ''),
    (8, 64, 4, 0, ''),
    (8, 60, 1, 0, 'batch_size=60 is not divisible by 8 devices.*batch_size=56 or 64'),
    (8, 4, 1, 0, 'batch_size=4 is not divisible by 8 devices.*batch_size=8$'),
    (8, 64, 3, 0, 'batch_size=64 is not divisible by 8 devices x 3 micro-batches.*=48 or 72'),
    (8, 64, 1, 3, 'ghost_batch=3 does not fit the 8 images.*ghost_batch=8'),
    (8, 64, 1, 16, 'ghost_batch=16 does not fit the 8 images.*ghost_batch=8'),
    (2, 64, 4, 4, 'ghost_batch=4 does not fit the 8 images.*ghost_batch=8'),
    (2, 64, 4, 16, 'ghost_batch=16 does not fit the 8 images.*ghost_batch=8'),
  ],
)
def test_what_fits_on_the_devices(device_count, batch_size, grad_accum_steps, ghost_batch, message):
  config = configs.default()
  config.model.net, config.model.ghost_batch = 'bn', ghost_batch
  config.batch_size, config.grad_accum_steps = batch_size, grad_accum_steps
  if not message:
    check_training_batch(config, devices(device_count))
    return
  with pytest.raises(UserError, match=message) as error:
    check_training_batch(config, devices(device_count))
  assert '\n' not in str(error.value)


# Evaluation.


def evaluator(count, images, labels, batch_size):
  experiment = types.SimpleNamespace(
    config=types.SimpleNamespace(eval=types.SimpleNamespace(batch_size=batch_size)),
    model=AlexNet(NORMALIZED, axis_name=AXIS),
    recipe=recipe_of(NORMALIZED),
  )
  return evaluation.Evaluator(experiment, Split(images, labels), devices(count))


def evaluation_data(count):
  rng = np.random.default_rng(9)
  images = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
  state = initial_state(NORMALIZED, recipe_of(NORMALIZED))
  stats = {
    'bn1': {
      'mean': rng.normal(size=8).astype(np.float32),
      'var': rng.uniform(100, 900, 8).astype(np.float32),
    }
  }
  return images, rng.integers(0, CLASSES, count).astype(np.int32), state.params, stats


def numpy_probabilities(images, params, stats, views):
  """Views cut by hand, probabilities averaged."""
  offsets = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)] if views == 10 else [(1, 1)]
  cuts = [images[:, r : r + CROP, c : c + CROP] for r, c in offsets]
  cuts += [cut[:, :, ::-1] for cut in cuts] if views == 10 else []
  apply = jax.jit(AlexNet(NORMALIZED).apply)
  probabilities = 0
  for cut in cuts:
    logits = np.asarray(
      apply({'params': params, 'batch_stats': stats}, cut.astype(np.float32) - 128), np.float64
    )
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = probabilities + exp / exp.sum(1, keepdims=True) / len(cuts)
  return probabilities


@pytest.mark.parametrize(
  'devices_count, images_count, batch_size, views',
  [(8, 37, 16, 10), (1, 37, 16, 10), (8, 32, 16, 1), (8, 5, 24, 1), (1, 1, 8, 1)],
)
def test_every_image_is_counted_once(devices_count, images_count, batch_size, views):
  images, labels, params, stats = evaluation_data(images_count)
  evaluate = evaluator(devices_count, images, labels, batch_size)
  on = devices(devices_count)
  place = on.replicate(params), on.replicate(stats)
  advanced = []
  predictions = evaluate.predictions(*place, views, advanced.append)
  assert sum(advanced) == images_count
  assert len(advanced) == -(-images_count // batch_size)
  probabilities = numpy_probabilities(images, params, stats, views)
  np.testing.assert_array_equal(predictions.label, labels)
  np.testing.assert_allclose(predictions.probabilities, probabilities, atol=1e-6)
