"""Trained nets for the tests of their use: made up, not trained."""

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as configs
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.nets import make_table
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.claim import claim_workdir
from alexnet_jax.run.folder import RunFolder

CLASSES = ('ant', 'bee', 'cat', 'dog', 'elk', 'fox', 'gnu')


def random_variables(net, classes, crop, seed=0, width=1.0):
  """Weights by NumPy in the shapes of a net, large enough that every layer matters."""
  random = np.random.default_rng(seed)
  model = AlexNet(make_table(net, classes, crop, width))
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, crop, crop, 3), np.float32)
  )

  def draw(path, leaf):
    name, fan_in = path[-1].key, np.prod(leaf.shape[:-1])
    if name == 'kernel':
      return random.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)
    low, high = (0.5, 1.5) if name in ('scale', 'var') else (-0.2, 0.2)
    return random.uniform(low, high, leaf.shape).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def preprocessing(crop=28, seed=0):
  """With a mean image and a scale for each color."""
  random = np.random.default_rng(seed)
  return Preprocessing(
    crop=crop,
    mean=random.uniform(90, 150, (crop, crop, 3)).astype(np.float32),
    scale=np.array([0.01, 0.02, 0.03], np.float32),
    color_basis=np.eye(3, dtype=np.float32),
  )


def digits_net(classes=CLASSES, **changes):
  """The net `digits` as read from somewhere; `changes` of Pretrained's attributes."""
  return Pretrained(
    **{
      'source': 'made up',
      'net': 'digits',
      'variables': random_variables('digits', len(classes), 28),
      'classes': tuple(classes),
      'image_size': 32,
      'resize': 'crop',
      'preprocessing': preprocessing(),
    }
    | changes
  )


def digits_config(**changes):
  config = configs.default()
  config.data.source = 'folder'
  config.data.dir = '/absent'
  config.data.image_size = 32
  config.model.net = 'digits'
  config.input.crop = 28
  config.update_from_flattened_dict(changes)
  return config


def write_run(workdir, config, variables, *, ema=None, kind='best', step=7):
  """A run's folder as training leaves it."""
  devices = ConfigDict({'global_count': 1, 'platform': 'cpu', 'kind': 'cpu', 'process_count': 1})
  claim_workdir(workdir, config, preprocessing(config.input.crop), devices, {})
  checkpoints = Checkpoints(RunFolder(workdir).checkpoints)
  state = {**variables, 'ema': ema or {}, 'step': np.int32(step)}
  checkpoints.save(
    step, state, {'classes': CLASSES, 'class_names': CLASSES, 'train_images': 700}, kind=kind
  )
  checkpoints.close()
  return workdir
