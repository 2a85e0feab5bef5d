"""A table of layers as a PyTorch module, written with PyTorch's own operations.

It shares with our net nothing but the rows, so that equal gradients mean something.  Where PyTorch
offers several spellings, the fastest of them is used.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from alexnet_jax.benchmarks.contestants import Unavailable
from alexnet_jax.model import layers


class TorchNet(nn.Module):
  """Runs the rows of a table on float32 (N, C, H, W); always in training mode."""

  def __init__(self, table: layers.Table, shape: layers.Shape):
    """`shape` is that of one image, (H, W, C).  Raises Unavailable for rows it does not know."""
    super().__init__()
    self.rows = nn.ModuleDict()
    self._permutations = {}
    for row, inputs, _ in layers.walk(table, shape):
      self.rows[row.name] = _module(row, inputs)
      if row.parameters(inputs):
        self._permutations[row.name] = _permutations(row, inputs)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    for module in self.rows.values():
      x = module(x)
    return x

  def load(self, weights: dict) -> None:
    """Takes over {layer: {'kernel', 'bias'}} as our net has them."""
    with torch.no_grad():
      for layer, name, parameter in self.named():
        parameter.copy_(
          torch.tensor(self._permutations[layer][name].to_torch(weights[layer][name]))
        )

  def gradients(self) -> dict:
    """The gradients of the last backward pass, as our net has them."""
    result = {}
    for layer, name, parameter in self.named():
      gradient = self._permutations[layer][name].from_torch(parameter.grad.cpu().numpy())
      result.setdefault(layer, {})[name] = gradient
    return result

  def named(self):
    """Yields (layer, 'kernel' or 'bias', parameter)."""
    for layer in self._permutations:
      yield layer, 'kernel', self.rows[layer].weight
      yield layer, 'bias', self.rows[layer].bias


class Permutation(NamedTuple):
  """How an array of ours lies in PyTorch: split into axes, permuted, and joined again."""

  ours: tuple[int, ...]
  split: tuple[int, ...]
  order: tuple[int, ...]
  theirs: tuple[int, ...]

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    return array.reshape(self.split).transpose(self.order).reshape(self.theirs)

  def from_torch(self, array: np.ndarray) -> np.ndarray:
    permuted = array.reshape([self.split[axis] for axis in self.order])
    return permuted.transpose(np.argsort(self.order)).reshape(self.ours)


def _permutations(row: layers.Row, inputs: layers.Shape) -> dict[str, Permutation]:
  shapes = row.parameters(inputs)
  kernel, bias = shapes['kernel'], shapes['bias']
  plain = Permutation(bias, bias, tuple(range(len(bias))), bias)
  match row:
    case layers.Local():
      rows, columns, height, width, channels, features = kernel
      places, fan_in = rows * columns, height * width * channels
      return {
        'kernel': Permutation(
          kernel,
          (places, height, width, channels, features),
          (0, 3, 1, 2, 4),
          (places, fan_in, features),
        ),
        'bias': Permutation(bias, bias, (2, 0, 1), (features, rows, columns)),
      }
    case layers.Conv():  # HWIO -> OIHW
      return {
        'kernel': Permutation(kernel, kernel, (3, 2, 0, 1), kernel[3:] + kernel[2:3] + kernel[:2]),
        'bias': plain,
      }
    case _:  # a flattened map is (H, W, C) in our net and (C, H, W) here
      order = (3, 2, 0, 1) if len(inputs) == 3 else (1, 0)
      return {
        'kernel': Permutation(kernel, (*inputs, row.features), order, kernel[::-1]),
        'bias': plain,
      }


def _module(row: layers.Row, inputs: layers.Shape) -> nn.Module:
  match row:
    case layers.Local():
      return _Local(row, inputs)
    case layers.Conv():
      return _Convolution(row, inputs)
    case layers.Dense():
      return _Dense(math.prod(inputs), row.features)
    case layers.Relu():
      return nn.ReLU(inplace=True)
    case layers.Tanh():
      return nn.Tanh()
    case layers.AvgPool():
      # There is no padding to count, but by default torch.compile's gradient is wrong where a
      # window overhangs (pytorch/pytorch#198119).
      return nn.AvgPool2d(row.window, row.stride, ceil_mode=True, count_include_pad=False)
    case layers.MaxPool():
      return nn.MaxPool2d(row.window, row.stride, ceil_mode=True)
    case layers.ResponseNorm():
      return _ResponseNorm(row)
    case layers.SpatialNorm():
      return _SpatialNorm(row)
    case layers.Dropout():
      return (nn.Dropout if row.inverted else _HalvingDropout)(1 - row.keep)
  raise Unavailable(f'its net has no {type(row).__name__} (layer {row.name})')


class _Convolution(nn.Conv2d):
  """Also with more zeros at the bottom and right than at the top and left."""

  def __init__(self, row: layers.Conv, inputs: layers.Shape):
    top, bottom = row.edge_padding(inputs[0])
    left, right = row.edge_padding(inputs[1])
    even = top == bottom and left == right
    super().__init__(
      inputs[2],
      row.features,
      row.kernel,
      row.stride,
      padding=(top, left) if even else 0,
      groups=row.groups,
    )
    self._edges = None if even else (left, right, top, bottom)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return super().forward(functional.pad(x, self._edges) if self._edges else x)


class _Dense(nn.Linear):
  """Of a map or of a vector."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return super().forward(x.flatten(1))


class _Local(nn.Module):
  """A kernel and a bias for every place of the output."""

  def __init__(self, row: layers.Local, inputs: layers.Shape):
    super().__init__()
    permutations = _permutations(row, inputs)
    self._row = row
    self._edges = (*row.edge_padding(inputs[1]), *row.edge_padding(inputs[0]))
    self.weight = nn.Parameter(torch.zeros(permutations['kernel'].theirs))
    self.bias = nn.Parameter(torch.zeros(permutations['bias'].theirs))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(x, self._edges)
    patches = functional.unfold(padded, self._row.kernel, stride=self._row.stride)
    y = torch.einsum('nkp,pko->nop', patches, self.weight)
    return y.reshape(-1, *self.bias.shape) + self.bias


class _ResponseNorm(nn.Module):
  """Across channels, inside each tower.  PyTorch's alpha is divided by the size, ours is not."""

  def __init__(self, row: layers.ResponseNorm):
    super().__init__()
    self._groups = row.groups
    self._norm = nn.LocalResponseNorm(row.size, row.alpha * row.size, row.beta, row.k)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    if self._groups == 1:
      return self._norm(x)
    return torch.cat([self._norm(tower) for tower in x.chunk(self._groups, 1)], 1)


class _SpatialNorm(nn.Module):
  """Over a square inside each channel."""

  def __init__(self, row: layers.SpatialNorm):
    super().__init__()
    self._row = row

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    row = self._row
    total = functional.avg_pool2d(x * x, row.size, 1, row.size // 2, divisor_override=1)
    return x / (row.k + row.alpha * total).pow(row.beta)


class _HalvingDropout(nn.Dropout):
  """Dropout that leaves the units it keeps alone in training, as in 2012."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return super().forward(x) * (1 - self.p)
