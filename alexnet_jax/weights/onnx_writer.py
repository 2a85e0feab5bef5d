"""The net as ONNX, for whatever runs ONNX; needs the package `onnx`, an extra.

Outputs are `logits` and `probabilities`, (N, classes) for any N.  The input `images` is float32
(N, 3, crop, crop), RGB after `Preprocessing`; or, with preprocessing inside, uint8
(N, image_size, image_size, 3), RGB, of which the center view is taken.  Operators:
onnx.ai/onnx/operators.
"""

import json

import jax
import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from alexnet_jax.model import layers
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.model.pretrained import Pretrained

PRODUCER = 'alexnet_jax'
OPSET, IR_VERSION = 17, 8  # of 2022
_MAX_BYTES = 2**31 - 1  # of a protobuf message


def write(pretrained: Pretrained, preprocessing: bool = False) -> bytes:
  """The bytes of a .onnx file.

  Args:
    pretrained: any net.
    preprocessing: whether crop, mean and scale are inside.

  Raises:
    ValueError: the net is too large for one file.
  """
  graph, crop = _Graph(), pretrained.preprocessing.crop
  images, x = _tensor('images', TensorProto.FLOAT, 'N', 3, crop, crop), 'images'
  if preprocessing:
    side = pretrained.image_size
    images = _tensor('images', TensorProto.UINT8, 'N', side, side, 3)
    x = _preprocess(graph, x, pretrained.preprocessing, side)
  for row, shape, _ in layers.walk(pretrained.table, (crop, crop, 3)):
    parts = (pretrained.variables[kind].get(row.name, {}) for kind in ('params', 'batch_stats'))
    arrays = {name: np.asarray(array) for part in parts for name, array in part.items()}
    x = _add_row(graph, row, x, shape, arrays)
  graph.nodes[-1].output[0] = 'logits'
  graph.node('Softmax', 'logits', name='probabilities', axis=1)
  size = sum(len(constant.raw_data) for constant in graph.constants)
  if size > _MAX_BYTES - 2**20:
    raise ValueError(f'{size:,} bytes of weights are more than an ONNX file holds')
  names, classes = ('logits', 'probabilities'), pretrained.classes
  outputs = [_tensor(name, TensorProto.FLOAT, 'N', len(classes)) for name in names]
  model = helper.make_model(
    helper.make_graph(graph.nodes, pretrained.net, [images], outputs, graph.constants),
    producer_name=PRODUCER,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
  )
  fields = {'net': pretrained.net, 'source': pretrained.source, 'resize': pretrained.resize}
  helper.set_model_props(model, {**fields, 'classes': json.dumps(classes, ensure_ascii=False)})
  checker.check_model(model)
  return model.SerializeToString()


class _Graph:
  """Nodes in the order in which they run, and the constants that they take."""

  def __init__(self):
    self.nodes, self.constants = [], []

  def constant(self, name: str, values) -> str:
    self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name

  def node(self, kind: str, *inputs: str, name: str, **attributes) -> str:
    """Adds a node with one output and returns the output's name, which is the node's."""
    self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
    return name

  def scalar(self, kind: str, x: str, value: float, name: str) -> str:
    """Combines x with a number."""
    return self.node(kind, x, self.constant(f'{name}/value', np.float32(value)), name=name)

  def cut(self, x: str, name: str, starts, stops, step: int = 1) -> str:
    """x[:, :, starts[0]:stops[0]:step, starts[1]:stops[1]:step]."""
    parts = {'starts': starts, 'stops': stops, 'axes': (2, 3), 'steps': (step, step)}
    inputs = [self.constant(f'{name}/{part}', np.int64(v)) for part, v in parts.items()]
    return self.node('Slice', x, *inputs, name=name)


def _tensor(name: str, kind: int, *shape: str | int):
  return helper.make_tensor_value_info(name, kind, shape)


def _preprocess(graph: _Graph, x: str, preprocessing: Preprocessing, side: int) -> str:
  """The center view, as `Preprocessing.test_view`."""
  x = graph.node('Transpose', x, name='images/nchw', perm=(0, 3, 1, 2))
  x = graph.node('Cast', x, name='images/float', to=TensorProto.FLOAT)
  if preprocessing.resize_to:
    # As products: the operator Resize is off by 1e-5 of the logits.
    weights = jax.image.resize(np.eye(side), (preprocessing.resize_to, side), 'bilinear')
    across = graph.constant('images/across', np.float32(weights).T)
    down = graph.constant('images/down', np.float32(weights))
    x = graph.node('MatMul', x, across, name='images/wider')
    x = graph.node('MatMul', down, x, name='images/enlarged')
    side = preprocessing.resize_to
  start = (side - preprocessing.crop) // 2
  if start or side != preprocessing.crop:
    stop = start + preprocessing.crop
    x = graph.cut(x, 'images/crop', (start, start), (stop, stop))
  mean = np.asarray(preprocessing.mean, np.float32)
  mean = mean.transpose(2, 0, 1) if mean.ndim == 3 else mean.reshape(3, 1, 1)
  x = graph.node('Sub', x, graph.constant('images/mean', mean), name='images/centered')
  scale = graph.constant('images/scale', np.float32(preprocessing.scale).reshape(3, 1, 1))
  return graph.node('Mul', x, scale, name='images/scaled')


def _add_row(graph: _Graph, row: layers.Row, x: str, shape: layers.Shape, arrays: dict) -> str:
  """Adds a row of the net's table and returns the name of its output."""
  name = row.name
  match row:
    case layers.Local():
      return _local(graph, row, x, shape, arrays)
    case layers.Conv():
      (top, bottom), (left, right) = (row.edge_padding(size) for size in shape[:2])
      return graph.node(
        'Conv',
        x,
        graph.constant(f'{name}/kernel', arrays['kernel'].transpose(3, 2, 0, 1)),
        graph.constant(f'{name}/bias', arrays['bias']),
        name=name,
        kernel_shape=(row.kernel, row.kernel),
        strides=(row.stride, row.stride),
        pads=(top, left, bottom, right),
        group=row.groups,
      )
    case layers.Dense():
      return _dense(graph, row, x, shape, arrays)
    case layers.Relu() | layers.Tanh():
      return graph.node(type(row).__name__, x, name=name)
    case layers.MaxPool():  # AvgPool is one
      kind = 'AveragePool' if isinstance(row, layers.AvgPool) else 'MaxPool'
      window = {'kernel_shape': (row.window,) * 2, 'strides': (row.stride,) * 2}
      return graph.node(kind, x, name=name, ceil_mode=int(row.ceil), **window)
    case layers.ResponseNorm():
      return _response_norm(graph, row, x)
    case layers.SpatialNorm():
      return _spatial_norm(graph, row, x)
    case layers.BatchNorm():
      given = {'scale': np.ones(shape[-1], np.float32), 'bias': np.zeros(shape[-1], np.float32)}
      given |= arrays
      inputs = [
        graph.constant(f'{name}/{part}', given[part]) for part in ('scale', 'bias', 'mean', 'var')
      ]
      return graph.node('BatchNormalization', x, *inputs, name=name, epsilon=row.epsilon)
    case layers.Dropout():
      if row.inverted:
        return graph.node('Dropout', x, name=name)  # passes all on; others look for it
      return graph.scalar('Mul', x, row.keep, name)
  raise TypeError(f'no ONNX operators for layer {row}')


def _dense(graph: _Graph, row: layers.Dense, x: str, shape: layers.Shape, arrays: dict) -> str:
  kernel = arrays['kernel']
  if len(shape) == 3:  # flattened as (C, H, W)
    kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    flat = graph.constant(f'{row.name}/shape', np.array([0, -1], np.int64))
    x = graph.node('Reshape', x, flat, name=f'{row.name}/flat')
  kernel = graph.constant(f'{row.name}/kernel', kernel.T)
  bias = graph.constant(f'{row.name}/bias', arrays['bias'])
  return graph.node('Gemm', x, kernel, bias, name=row.name, transB=1)


def _local(graph: _Graph, row: layers.Local, x: str, shape: layers.Shape, arrays: dict) -> str:
  """Patches as in `convolution.locally_connected`, and a product of matrices at each position."""
  name, kernel = row.name, arrays['kernel']
  rows, columns, side, _, channels, features = kernel.shape
  (top, bottom), (left, right) = (row.edge_padding(size) for size in shape[:2])
  pads = graph.constant(f'{name}/pads', np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
  x = graph.node('Pad', x, pads, name=f'{name}/padded')
  reach = [(count - 1) * row.stride + 1 for count in (rows, columns)]
  taps = [
    graph.cut(x, f'{name}/tap{i}_{j}', (i, j), (i + reach[0], j + reach[1]), row.stride)
    for i in range(side)
    for j in range(side)
  ]
  patches = graph.node('Concat', *taps, name=f'{name}/patches', axis=1)
  filters = kernel.reshape(rows, columns, side * side * channels, features)
  filters = graph.constant(f'{name}/kernel', filters)
  x = graph.node('Einsum', patches, filters, name=f'{name}/sums', equation='nkhw,hwko->nohw')
  bias = graph.constant(f'{name}/bias', arrays['bias'].transpose(2, 0, 1))
  return graph.node('Add', x, bias, name=name)


def _response_norm(graph: _Graph, row: layers.ResponseNorm, x: str) -> str:
  """ONNX divides alpha by the size, as the 2012 code does."""
  numbers = {'size': row.size, 'alpha': row.alpha * row.size, 'beta': row.beta, 'bias': row.k}
  if row.groups == 1:
    return graph.node('LRN', x, name=row.name, **numbers)
  towers = [f'{row.name}/tower{number}' for number in range(row.groups)]
  graph.nodes.append(helper.make_node('Split', [x], towers, f'{row.name}/towers', axis=1))
  normed = [graph.node('LRN', tower, name=f'{tower}/norm', **numbers) for tower in towers]
  return graph.node('Concat', *normed, name=row.name, axis=1)


def _spatial_norm(graph: _Graph, row: layers.SpatialNorm, x: str) -> str:
  """x / (k + alpha * sum of squares in the window)^beta; the sum is a mean that counts padding."""
  name, size, before = row.name, row.size, row.size // 2
  squares = graph.node('Mul', x, x, name=f'{name}/squares')
  mean = graph.node(
    'AveragePool',
    squares,
    name=f'{name}/mean',
    kernel_shape=(size, size),
    pads=(before, before, size - 1 - before, size - 1 - before),
    count_include_pad=1,
  )
  energy = graph.scalar('Mul', mean, row.alpha * size * size, f'{name}/energy')
  base = graph.scalar('Add', energy, row.k, f'{name}/base')
  power = graph.scalar('Pow', base, row.beta, f'{name}/power')
  return graph.node('Div', x, power, name=name)
