"""What a training step needs, small: it is compiled many times. test_alexnet.py has whole nets."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.model import layers
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.train.devices import Devices, to_host
from alexnet_jax.train.optimizer import krizhevsky_momentum, weight_decay_tree
from alexnet_jax.train.schedules import Rates
from alexnet_jax.train.step import Recipe, init_state

BATCH, SIDE, CROP, CLASSES = 32, 14, 12, 7


def devices(count):
  return Devices(jax.local_devices(backend='cpu')[:count])


def decay_of(table, biases=False):
  shapes = {row.name: row.parameters(x) for row, x, _ in layers.walk(table, (CROP, CROP, 3))}
  shapes = {name: found for name, found in shapes.items() if found}
  optimizer = configs.default().optimizer
  optimizer.weight_decay, optimizer.decay_biases = 0.01, biases
  return weight_decay_tree(shapes, optimizer)


def recipe_of(table, scale=1.0, **changes):
  preprocessing = Preprocessing(
    crop=CROP,
    mean=np.full(3, 128, np.float32),
    scale=np.full(3, scale, np.float32),
    color_basis=np.diag([30, 20, 10]).astype(np.float32),
  )
  settings = {
    'seed': 3,
    'preprocessing': preprocessing,
    'color_noise': lambda step: jnp.float32(0.1),
    'rates': Rates(lambda step: jnp.float32(0.01), lambda step: jnp.float32(0.02), {}),
    'optimizer': krizhevsky_momentum(0.9, decay_of(table)),
  }
  return Recipe(**settings | changes)


def initial_state(table, recipe, shape=(CROP, CROP, 3)):
  """As at the start of a run, drawn by NumPy: compiling JAX's draws takes longer than a test."""
  rng, params, batch_stats = np.random.default_rng(0), {}, {}
  for row, inputs, _ in layers.walk(table, shape):
    shapes = row.parameters(inputs)
    if isinstance(row, layers.BatchNorm):
      ones, zeros = np.ones(inputs[-1:]), np.zeros(inputs[-1:])
      batch_stats[row.name] = {'mean': zeros, 'var': ones}
      if shapes:
        params[row.name] = {'scale': ones, 'bias': zeros}
    elif shapes:
      params[row.name] = _draw(row, shapes, rng)
  variables = {'params': params, 'batch_stats': batch_stats}
  variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
  return to_host(init_state(variables, recipe, {}))


def _draw(row, shapes, rng):
  kernel = shapes['kernel']
  fan_in = math.prod(kernel[2:-1] if isinstance(row, layers.Local) else kernel[:-1])
  if row.init == 'torch':
    return {name: rng.uniform(-1, 1, shape) / math.sqrt(fan_in) for name, shape in shapes.items()}
  std = math.sqrt(2 / fan_in) if row.init == 'he' else row.init
  return {'kernel': rng.normal(0, std, kernel), 'bias': np.full(shapes['bias'], row.bias)}


def batch_of(step):
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
    'label': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'position': np.arange(BATCH, dtype=np.int32),
  }
