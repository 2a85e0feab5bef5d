"""Label smoothing, averaged weights, LARS and the polynomial schedule against other definitions."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax.train import schedules
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.train.optimizer import lars
from alexnet_jax.train.step import make_compute_gradients, make_train_step


def small_run(**changes):
  """An experiment on made-up 16-pixel images, its state and a batch."""
  config = configs.default()
  with config.unlocked():
    config.update_from_flattened_dict(
      {
        'model.net': 'cifar_80sec',
        'data.image_size': 16,
        'input.crop': 16,
        'batch_size': 8,
        'input.color_noise': 0.0,
        'input.random_flip': False,
        **changes,
      }
    )
  random = np.random.default_rng(0)
  store = types.SimpleNamespace(
    classes=tuple('abcdefg'),
    train=types.SimpleNamespace(labels=np.zeros(80)),
    mean_image=np.full((16, 16, 3), 128, np.float32),
    color_stdevs=np.ones(3),
    color_eigenvectors=np.eye(3),
    upright=False,
  )
  experiment = make_experiment(config, store, None)
  batch = {
    'image': random.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
    'label': random.integers(0, 7, 8).astype(np.int32),
    'position': np.arange(8, dtype=np.int32),
  }
  compute_gradients = make_compute_gradients(experiment.model, experiment.recipe)
  step = jax.jit(make_train_step(experiment.recipe, compute_gradients))
  return experiment, experiment.initial_state(), step, batch


@pytest.mark.slow
def test_smoothed_loss_agrees_with_torch():
  torch = pytest.importorskip('torch')
  experiment, state, step, batch = small_run(label_smoothing=0.1)
  images = experiment.recipe.preprocessing.test_view(batch['image'], jnp.array([0.5, 0.5, 0]))
  logits = experiment.model.apply({'params': state.params}, images)
  expected = torch.nn.functional.cross_entropy(
    torch.tensor(np.asarray(logits)),
    torch.tensor(batch['label'].astype(np.int64)),
    label_smoothing=0.1,
  )
  _, metrics = step(state, batch)
  assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-5)


def test_averaged_weights_follow_the_recursion():
  _, state, step, batch = small_run(ema_decay=0.3)
  average = np.asarray(state.params['conv2']['kernel'], np.float64)
  for t in range(4):
    state, _ = step(state, batch)
    decay = min(0.3, (1 + t) / (10 + t))
    average = decay * average + (1 - decay) * np.asarray(state.params['conv2']['kernel'])
    np.testing.assert_allclose(state.ema['conv2']['kernel'], average, rtol=1e-5, atol=1e-8)
  assert state.eval_params is state.ema
  assert not np.array_equal(state.ema['conv2']['kernel'], state.params['conv2']['kernel'])


def test_without_an_average_the_weights_are_evaluated():
  _, state, step, batch = small_run()
  state, _ = step(state, batch)
  assert state.ema == {} and state.eval_params is state.params


def test_lars_agrees_with_its_formula():
  random = np.random.default_rng(0)
  w = random.normal(size=(4, 5))
  momentum, eta, decay, rate = 0.9, 0.001, 0.0005, 10.0
  params = {'fc': {'kernel': jnp.asarray(w, jnp.float32), 'bias': jnp.ones(5)}}
  rates = {'fc': {'kernel': rate, 'bias': 0.02}}
  decays = {'fc': {'kernel': decay, 'bias': 0.0}}
  rule = lars(momentum, decays, eta)
  velocity, state = np.zeros_like(w), rule.init(params)
  for _ in range(3):
    gradient = random.normal(size=w.shape)
    gradients = {'fc': {'kernel': jnp.asarray(gradient, jnp.float32), 'bias': jnp.ones(5)}}
    updates, state = rule.update(gradients, state, params, rates=rates)
    local = min(rate, (1 - momentum) * eta * np.linalg.norm(w) / np.linalg.norm(gradient))
    velocity = momentum * velocity - local * (gradient + decay * w)
    np.testing.assert_allclose(updates['fc']['kernel'], velocity, rtol=1e-5)
  # All ones against all ones: the trust of the bias is (1 - momentum) * eta.
  np.testing.assert_allclose(updates['fc']['bias'], -1e-4 * (1 + 0.9 + 0.81), rtol=1e-5)


@pytest.mark.parametrize('rate, moved', [(0.5, 0.5), (32.0, 1.0), (0.0, 0.0)])
def test_lars_of_a_parameter_that_is_zero(rate, moved):
  """NVIDIA's `GetLocalRate` starts from 1 and leaves it where a norm is 0; then min(rate, it)."""
  rule = lars(0.9, {'bias': 0.0}, 0.001)
  zeros, ones = {'bias': jnp.zeros(3)}, {'bias': jnp.ones(3)}
  updates, _ = rule.update(ones, rule.init(zeros), zeros, rates={'bias': rate})
  np.testing.assert_allclose(updates['bias'], -moved)
  updates, _ = rule.update(zeros, rule.init(ones), ones, rates={'bias': rate})
  np.testing.assert_array_equal(updates['bias'], 0)


def test_polynomial_is_caffes_poly():
  curve = schedules.polynomial(1000, 2.0)
  for step in (0, 1, 500, 999, 1000):
    assert float(curve(step)) == pytest.approx((1 - step / 1000) ** 2, abs=1e-7)


def test_rate_scales_with_the_batch_only_when_asked():
  experiment, *_ = small_run()
  assert experiment.recipe.rates.learning_rate == pytest.approx(0.01)
  experiment, *_ = small_run(**{'optimizer.base_batch_size': 2})
  assert experiment.recipe.rates.learning_rate == pytest.approx(0.04)
