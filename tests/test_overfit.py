"""Every net learns a batch by heart with its config's own train step, rate and dropout.

The ImageNet nets have an eighth of their channels and 67-pixel images (63 for `owt`), the smallest
that leave every map at least one pixel; the others have their own size.  Eight images, four classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax import diagnose
from alexnet_jax.model import layers, nets
from alexnet_jax.train import diagnosis
from alexnet_jax.train.step import init_state

CLASSES, IMAGES = 4, 8


def experiment_of(config, divisor=1, edit=lambda table: table):
  """The one-batch run of a config on photo-like noise, and its batch."""
  config.data.num_classes, config.data.image_size = CLASSES, config.input.crop
  config.eval.final_views = 1
  configs.validate(config)
  store = diagnose.photo_like_store(CLASSES, IMAGES, config.input.crop)
  experiment = diagnosis.one_batch_experiment(config, store, IMAGES)
  table = edit(layers.narrow(experiment.table, divisor) if divisor > 1 else experiment.table)
  experiment = dataclasses.replace(
      experiment, table=table, model=experiment.model.clone(table=table))
  return experiment, store.train.images, store.train.labels


def initial_state(experiment, seed=0):
  """As Experiment.initial_state, drawn by NumPy: to compile JAX's draws takes longer than a test."""
  rng, params = np.random.default_rng(seed), {}
  for row, inputs, _ in layers.walk(experiment.table, experiment.view_shape):
    shapes = row.parameters(inputs)
    if isinstance(row, layers.BatchNorm):
      params[row.name] = {'scale': np.ones(shapes['scale']), 'bias': np.zeros(shapes['bias'])}
    elif shapes:
      params[row.name] = draw(row, shapes, rng)
  params = jax.tree.map(jnp.float32, params)
  batch_stats = {
      row.name: {'mean': 0 * params[row.name]['bias'], 'var': 0 * params[row.name]['bias'] + 1}
      for row in experiment.table if isinstance(row, layers.BatchNorm)}
  return init_state({'params': params, 'batch_stats': batch_stats}, experiment.recipe, {})


def draw(row, shapes, rng):
  kernel = shapes['kernel']
  fan_in = math.prod(kernel[2:-1] if isinstance(row, layers.Local) else kernel[:-1])
  if row.init == 'torch':
    bound = 1 / math.sqrt(fan_in)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
  std = math.sqrt(2 / fan_in) if row.init == 'he' else row.init
  return {'kernel': rng.normal(0, std, kernel), 'bias': np.full(shapes['bias'], row.bias)}
