"""The rows a network table is made of: what a layer is, without saying how it is computed.

Each row knows its output shape, its parameters and its multiply-accumulates; `alexnet.py`
computes it.  Shapes are (height, width, channels) or (features,), without the batch.

Geometry of the 2012 code (layer.py): a convolution has 1 + ceil((2 pad + size - kernel) / stride)
outputs, a pooling layer ceil((size - window) / stride) + 1, so the last window may hang over the
bottom and right edge; convolutions read zeros there and pools clip the window.
"""

import dataclasses
import math
from typing import Literal

Shape = tuple[int, ...]
# N(0, value^2), or N(0, 2 / fan_in), or PyTorch's default U(-1, 1) / sqrt(fan_in), biases included.
Init = float | Literal['he', 'torch']


@dataclasses.dataclass(frozen=True)
class Row:
  """A layer without parameters that keeps its input's shape."""

  name: str

  def output_shape(self, shape: Shape) -> Shape:
    return shape

  def parameters(self, shape: Shape) -> dict[str, Shape]:
    """Parameter shapes by name, for an input of `shape`."""
    del shape
    return {}

  def parameter_count(self, shape: Shape) -> int:
    return sum(map(math.prod, self.parameters(shape).values()))

  def macs(self, shape: Shape) -> int:
    """Multiply-accumulates of one image; biases, norms and pools count as none."""
    del shape
    return 0


@dataclasses.dataclass(frozen=True)
class Conv(Row):
  """A cross-correlation with one bias per filter; `ceil` pads bottom/right to cut nothing off."""

  features: int
  kernel: int
  stride: int = 1
  padding: int = 0
  groups: int = 1
  ceil: bool = False
  init: Init = 0.01
  bias: float = 0.0

  def edge_padding(self, size: int) -> tuple[int, int]:
    """Rows (or columns) of zeros before and after an axis of `size` pixels."""
    after = self.padding
    if self.ceil:
      after += -(size + 2 * self.padding - self.kernel) % self.stride
    return self.padding, after

  def output_shape(self, shape: Shape) -> Shape:
    def outputs(size: int) -> int:
      return (size + sum(self.edge_padding(size)) - self.kernel) // self.stride + 1

    return outputs(shape[0]), outputs(shape[1]), self.features

  def parameters(self, shape: Shape) -> dict[str, Shape]:
    kernel = (self.kernel, self.kernel, shape[2] // self.groups, self.features)
    return {'kernel': kernel, 'bias': (self.features,)}

  def macs(self, shape: Shape) -> int:
    rows, columns, _ = self.output_shape(shape)
    return rows * columns * math.prod(self.parameters(shape)['kernel'])


@dataclasses.dataclass(frozen=True)
class Local(Conv):
  """A convolution whose weights and biases are not shared between positions (cuda-convnet)."""

  def parameters(self, shape: Shape) -> dict[str, Shape]:
    rows, columns, _ = self.output_shape(shape)
    kernel = (rows, columns, self.kernel, self.kernel, shape[2], self.features)
    return {'kernel': kernel, 'bias': (rows, columns, self.features)}

  def macs(self, shape: Shape) -> int:
    return math.prod(self.parameters(shape)['kernel'])


@dataclasses.dataclass(frozen=True)
class Dense(Row):
  """A fully connected layer; a feature map is flattened as (height, width, channels)."""

  features: int
  init: Init = 0.01
  bias: float = 0.0

  def output_shape(self, shape: Shape) -> Shape:
    return (self.features,)

  def parameters(self, shape: Shape) -> dict[str, Shape]:
    return {'kernel': (math.prod(shape), self.features), 'bias': (self.features,)}

  def macs(self, shape: Shape) -> int:
    return math.prod(shape) * self.features


@dataclasses.dataclass(frozen=True)
class Relu(Row):
  """max(x, 0)."""


@dataclasses.dataclass(frozen=True)
class Tanh(Row):
  """Hyperbolic tangent: the saturating unit that the paper's Figure 1 compares with."""


@dataclasses.dataclass(frozen=True)
class MaxPool(Row):
  """Maximum over `window` x `window`; 3/2 is the paper's overlapping pool.

  With `ceil` the last window is clipped at the edge; else pixels that fill no window are left out.
  """

  window: int = 3
  stride: int = 2
  ceil: bool = True

  def covered(self, size: int) -> int:
    """How many of `size` pixels in a row are in a window."""
    return size if self.ceil else size - (size - self.window) % self.stride

  def output_shape(self, shape: Shape) -> Shape:
    def outputs(size: int) -> int:
      return math.ceil((self.covered(size) - self.window) / self.stride) + 1

    return outputs(shape[0]), outputs(shape[1]), shape[2]


@dataclasses.dataclass(frozen=True)
class AvgPool(MaxPool):
  """Mean over the clipped window."""


@dataclasses.dataclass(frozen=True)
class ResponseNorm(Row):
  """Local response normalization across channels: a / (k + alpha * sum a^2) ^ beta.

  `alpha` multiplies the plain sum.  The 2012 code divides its `scale` by `size` first (layer.py),
  so its 1e-4 is 2e-5 here.  The window stays inside each of `groups` towers.
  """

  size: int = 5
  alpha: float = 2e-5
  beta: float = 0.75
  k: float = 2.0
  groups: int = 1


@dataclasses.dataclass(frozen=True)
class SpatialNorm(Row):
  """The 2012 code's `rnorm`: as ResponseNorm over a `size` x `size` window inside one channel."""

  size: int = 5
  alpha: float = 4e-5
  beta: float = 0.75
  k: float = 1.0


@dataclasses.dataclass(frozen=True)
class BatchNorm(Row):
  """Batch normalization over all axes but the last; `decay` is that of the running moments.

  With `affine` each channel has a learned scale and bias.
  """

  decay: float = 0.9
  epsilon: float = 1e-5
  affine: bool = True

  def parameters(self, shape: Shape) -> dict[str, Shape]:
    return {'scale': (shape[-1],), 'bias': (shape[-1],)} if self.affine else {}


@dataclasses.dataclass(frozen=True)
class Dropout(Row):
  """Keeps each unit with probability `keep`.

  As in 2012, training does not rescale and the test multiplies by `keep` (paper section 4.2);
  `inverted` divides by `keep` in training instead, which is another SGD trajectory.
  """

  keep: float = 0.5
  inverted: bool = False


Table = tuple[Row, ...]


def walk(table: Table, shape: Shape):
  """Yields (row, input shape, output shape) down the table for one image of `shape`.

  Raises:
    ValueError: a layer does not fit its input; the message names it.
  """
  for row in table:
    if isinstance(row, (Conv, MaxPool, SpatialNorm)) and len(shape) != 3:
      raise ValueError(f'layer {row.name} needs a feature map, but its input has shape {shape}')
    if isinstance(row, Conv) and (shape[2] % row.groups or row.features % row.groups):
      raise ValueError(
        f'layer {row.name}: {shape[2]} input and {row.features} output channels must both be'
        f' divisible by groups={row.groups}'
      )
    if isinstance(row, ResponseNorm) and shape[-1] % row.groups:
      raise ValueError(f'layer {row.name}: {shape[-1]} channels are not divisible by {row.groups}')
    output = row.output_shape(shape)
    if min(output) < 1:
      raise ValueError(
        f'layer {row.name} would have output shape {output}: its input {shape} is too small;'
        ' use a larger image'
      )
    yield row, shape, output
    shape = output


def without(table: Table, kinds: type[Row] | tuple[type[Row], ...]) -> Table:
  """The rows that are not of some kinds."""
  return tuple(row for row in table if not isinstance(row, kinds))


def narrow(table: Table, divisor: int) -> Table:
  """The same net with 1/divisor of the features of every layer with a kernel but the last.

  A standard deviation of initial weights is given for the layer's fan-in in full.  Where the
  fan-in shrinks, in all layers but the first, it grows by sqrt(divisor), so that signals have the
  size that they have in the full net.  'he' and 'torch' do so by themselves.

  Raises:
    ValueError: a layer's features are not divisible by `divisor`.
  """
  weighted = [row for row in table if isinstance(row, (Conv, Dense))]
  rows = []
  for row in table:
    if isinstance(row, (Conv, Dense)):
      features, init = row.features, row.init
      if row is not weighted[-1]:
        features, rest = divmod(features, divisor)
        if rest:
          raise ValueError(
            f'layer {row.name}: {row.features} features are not divisible by {divisor}'
          )
      if row is not weighted[0] and isinstance(init, float):
        init *= math.sqrt(divisor)
      row = dataclasses.replace(row, features=features, init=init)
    rows.append(row)
  return tuple(rows)


def count_parameters(table: Table, shape: Shape) -> int:
  return sum(row.parameter_count(inputs) for row, inputs, _ in walk(table, shape))


def count_macs(table: Table, shape: Shape) -> int:
  return sum(row.macs(inputs) for row, inputs, _ in walk(table, shape))
