"""Starting from a trained net instead of random weights."""

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.model import nets, preprocessing
from alexnet_jax.model.pretrained import Pretrained


def check_fit(weights: Pretrained, config, shapes: dict, new_layer: str) -> None:
  """Raises UserError unless the weights fit the config's net in all layers but `new_layer`.

  Args:
    weights: the trained net.
    config: the run's.
    shapes: {layer: {parameter: shape}} of the run's net.
    new_layer: the layer that depends on the number of classes.
  """
  if (weights.net, weights.ablations) != (config.model.net, tuple(config.model.ablations)):
    raise UserError(
      f'config.weights={config.weights} holds net {nets.title(weights)}, which does not'
      f' fit config.model.net={nets.title(config.model)}: use --config.model.net={weights.net} with'
      ' the same ablations, or other weights'
    )
  for layer, parameters in shapes.items():
    for name, shape in parameters.items():
      found = weights.variables['params'][layer][name].shape
      if layer != new_layer and found != tuple(shape):
        raise UserError(
          f'config.weights={config.weights} has {layer}/{name} of shape {found}, this run'
          f' {tuple(shape)}: use the view they were trained with,'
          f' --config.input.crop={weights.preprocessing.crop}'
        )


def start_from(weights: Pretrained, variables: dict, new_layer: str | None) -> dict:
  """The weights in the shape of a net's initial variables.

  Args:
    weights: the trained net; see `check_fit`.
    variables: {'params': ..., 'batch_stats': ...} at random.
    new_layer: the layer to leave at random, or None.
  """
  return {
    collection: {
      layer: leaves
      if layer == new_layer
      else {name: weights.variables[collection][layer][name] for name in leaves}
      for layer, leaves in layers.items()
    }
    for collection, layers in variables.items()
  }


def normalization(weights: Pretrained, crop: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean, (crop, crop, 3) or (3,), and scale (3,) that the weights were trained with.

  Raises:
    UserError: their mean image is smaller than the view.
  """
  mean = weights.preprocessing.mean
  if mean.ndim == 3:
    if crop > len(mean):
      raise UserError(
        f'config.input.crop={crop}: the mean image of the weights has {len(mean)} pixels on a side;'
        f' use at most that'
      )
    mean = preprocessing.central(mean, crop)
  return mean, weights.preprocessing.scale
