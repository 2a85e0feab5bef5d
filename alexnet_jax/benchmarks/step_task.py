"""The training step that the step benchmark compares, and the check that peers compute the same."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.model import layers


@dataclasses.dataclass(frozen=True)
class Task:
  """The training step that all contestants are given.

  Attributes:
    table: the net.
    view_shape: (crop, crop, 3).
    platform: what our step runs on, such as 'cpu'.
    compute_dtype, optimizer, momentum: as in the config.
    views: float32 (N, crop, crop, 3), the net's input without random augmentation.
    labels: int32 (N,).
    weights: initial {layer: {'kernel', 'bias'}}, float32.
    rates, decays: learning rates and weight decay in the shape of `weights`, floats.
  """

  table: layers.Table
  view_shape: layers.Shape
  platform: str
  compute_dtype: str
  optimizer: str
  momentum: float
  views: np.ndarray
  labels: np.ndarray
  weights: dict
  rates: dict
  decays: dict

  @property
  def tolerance(self) -> tuple[float, float]:
    """Relative differences of loss and of gradients up to which two nets count as the same."""
    if self.platform == 'cpu' and self.compute_dtype == 'float32':
      # Sums are in other orders, and about one unit in a million falls the other way at the edge of
      # a ReLU or between the two largest of a pool, which the L2 norm of a gradient shows as the
      # root of that.
      return 1e-5, 1e-2
    # Products of bfloat16, or of TF32 as all have them on a GPU.  Not measured on a GPU yet.
    return 1e-2, 0.2


class LossAndGrads(NamedTuple):
  """Loss and gradients {layer: {'kernel', 'bias'}} of one batch without anything random."""

  loss: float
  gradients: dict


def without_dropout(table: layers.Table) -> layers.Table:
  """The same net with dropout layers that keep every unit."""
  return tuple(
    dataclasses.replace(row, keep=1.0) if isinstance(row, layers.Dropout) else row for row in table
  )


def lively_weights(initial: dict, last: str) -> dict:
  """Random weights in the shape of `initial` at which every layer matters.

  At the initial weights of the CIFAR nets activations are so small that response norms do nothing,
  and a wrong one would pass.  Here each layer keeps the scale of its input, and `last` lowers it.
  """
  random, weights = np.random.default_rng(0), {}
  for layer, leaves in initial.items():
    kernel, bias = leaves['kernel'].shape, leaves['bias'].shape
    fan_in = math.prod(kernel[-4:-1])  # of a locally connected layer, the axes of a place
    scale = math.sqrt(2 / fan_in) * (0.02 if layer == last else 1)
    weights[layer] = {
      'kernel': np.float32(scale) * random.standard_normal(kernel, np.float32),
      'bias': np.float32(0.1) * random.standard_normal(bias, np.float32),
    }
  return weights


class Equality(NamedTuple):
  """Both losses, and the largest relative difference (L2) of a gradient, `where` it is."""

  our_loss: float
  loss: float
  gradient_difference: float
  where: str


def check_equal(
  name: str, ours: LossAndGrads, peer: LossAndGrads, tolerance: tuple[float, float]
) -> Equality:
  """Compares losses, and gradients parameter by parameter; `tolerance` as in `Task`.

  Raises:
    UserError: the peer computes something else, so that its speed would say nothing.
  """
  for_loss, for_gradient = tolerance
  difference, where = max(
    (_distance(ours.gradients[layer][leaf], gradient), f'{layer}/{leaf}')
    for layer, leaves in peer.gradients.items()
    for leaf, gradient in leaves.items()
  )
  reason = ''
  if not abs(peer.loss - ours.loss) <= for_loss * abs(ours.loss):
    reason = f'its loss is {peer.loss:.6f}, ours {ours.loss:.6f}'
  elif difference > for_gradient:
    reason = (
      f'its gradient of {where} differs from ours by {difference:.1e} of its size'
      f' (allowed: {for_gradient:g})'
    )
  if reason:
    raise UserError(f'{name} is not the same computation: {reason}; no ratio is given')
  return Equality(ours.loss, peer.loss, difference, where)


def _distance(expected: np.ndarray, actual: np.ndarray) -> float:
  """Relative difference in the L2 norm; inf instead of NaN."""
  expected, actual = expected.astype(np.float64), actual.astype(np.float64)
  size = max(float(np.linalg.norm(expected)), 1e-300)
  return float(np.nan_to_num(np.linalg.norm(actual - expected) / size, nan=np.inf))
