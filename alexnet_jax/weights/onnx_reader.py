"""AlexNets in ONNX, recognized by what their layers compute; needs the package `onnx`, an extra.

Read are the model zoo's AlexNet and CaffeNet (github.com/onnx/models) and what torch.onnx makes of
torchvision's alexnet.  Names in a file mean nothing; nothing in it is run.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from alexnet_jax.model import layers, nets
from alexnet_jax.weights.onnx_writer import PRODUCER

_NETS = ('caffe', 'caffenet', 'owt', 'caffe_onnx', 'caffenet_onnx')
_LAYERS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8')
_PASSING = ('Identity', 'Dropout', 'Flatten', 'Reshape')  # in the test, and before a dense layer

Constants = Mapping[str, Callable[[], np.ndarray]]


def read(data: bytes, folder: Path) -> tuple[str, int, dict[str, np.ndarray]]:
  """The net, the side of its input, and arrays by '<layer>/kernel' and '<layer>/bias'.

  Args:
    data: of a .onnx file.
    folder: where the file is; other files of it may lie there or below.

  Raises:
    ValueError: damaged, no AlexNet, or with weights outside of `folder`.
  """
  try:
    model = onnx.load_model_from_string(data)
    if model.producer_name == PRODUCER:
      raise ValueError('convert wrote it, to be run: convert again what it was made of')
    return _read(model.graph, folder)
  except (DecodeError, AttributeError, ArithmeticError, LookupError, TypeError) as error:
    raise ValueError(f'it is ONNX, but damaged ({" ".join(str(error).split())[:80]})') from None


def _read(graph: onnx.GraphProto, folder: Path) -> tuple[str, int, dict[str, np.ndarray]]:
  tensors = {tensor.name: tensor for tensor in graph.initializer}
  for node in graph.node:
    if node.op_type == 'Constant':
      tensors[node.output[0]] = _attributes(node)['value']
  inputs = [given for given in graph.input if given.name not in tensors]
  sizes = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
  title = f'ONNX, and its graph {graph.name:.40} is no AlexNet'
  if len(inputs) != 1 or len(sizes) != 4 or sizes[1] != 3 or not sizes[2] == sizes[3] > 0:
    raise ValueError(f'it is {title}: it does not take square images (N, 3, H, H) of a fixed size')
  crop, number, weighted = sizes[2], 0, []
  arrays: dict[str, np.ndarray] = {}
  candidates = {net: _expected(net, crop) for net in _NETS}
  for number, (found, node) in enumerate(_walk(graph, inputs[0].name, crop, tensors), start=1):
    wanted = {words[number - 1] for words in candidates.values() if number <= len(words)}
    candidates = {n: w for n, w in candidates.items() if w[number - 1 : number] == [found]}
    if not candidates:
      other = f', where a known one has {" or ".join(sorted(wanted))}' if wanted else ''
      raise ValueError(f'it is {title}: layer {number} is {found}{other}')
    if node.op_type in ('Conv', 'Gemm'):
      weighted.append(node)
  candidates = {net: words for net, words in candidates.items() if len(words) == number}
  if not candidates:
    raise ValueError(f'it is {title}: it ends after {number} layers')
  for layer, node in zip(_LAYERS, weighted, strict=True):
    kernel, bias = (_array(tensors, name, folder) for name in node.input[1:3])
    transposed = node.op_type == 'Gemm' and not _attributes(node).get('transB', 0)
    arrays |= {f'{layer}/kernel': kernel.T if transposed else kernel, f'{layer}/bias': bias}
  return next(iter(candidates)), crop, arrays


def _expected(net: str, crop: int) -> list[str]:
  """What `_walk` yields of a net, [] if it cannot be built for such images."""
  try:
    walked = list(layers.walk(nets.make_table(net, 2, crop), (crop, crop, 3)))
  except ValueError:
    return []
  return [
    _describe(row, shape[0]) for row, _, shape in walked if not isinstance(row, layers.Dropout)
  ]


def _describe(row: layers.Row, side: int) -> str:
  """What a row computes, apart from its number of features; `side` is that of its output."""
  match row:
    case layers.Conv():
      window = f'{row.kernel}x{row.kernel}, stride {row.stride}, padding {row.padding}'
      return f'a convolution ({window}, groups {row.groups}, maps of {side})'
    case layers.MaxPool():
      return f'a max pool ({row.window}x{row.window}, stride {row.stride}, maps of {side})'
    case layers.ResponseNorm():
      numbers = f'alpha {row.alpha * row.size:.4g}, beta {row.beta:.4g}, k {row.k:.4g}'
      return f'a response norm (size {row.size}, {numbers})'
    case layers.Dense():
      return 'a dense layer'
  return 'a ReLU'


def _walk(
  graph: onnx.GraphProto, x: str, side: int, tensors: Mapping[str, onnx.TensorProto]
) -> Iterator[tuple[str, onnx.NodeProto]]:
  """Yields what each node computes, down the only path that there is, as `_describe` says it."""
  constants = set(tensors)
  for node in graph.node:
    if constants.issuperset(node.input):
      constants.update(node.output)
      continue
    if node.input[0] != x:
      yield f'{_kind(node)}, on another path', node
      return
    given = _attributes(node)
    x, operator = node.output[0], node.op_type
    pads, strides = given.get('pads', [0] * 4), given.get('strides', [1, 1])
    kernel = given.get('kernel_shape', [0, 0])
    plain = (
      len({*strides}) == len({*kernel}) == 1
      and {*given.get('dilations', [1])} == {1}
      and given.get('auto_pad', b'NOTSET') == b'NOTSET'
      and len(pads) == 4
      and strides[0] > 0
    )
    if operator == 'Softmax':
      x = ''  # nothing may follow
    elif operator in _PASSING or (operator == 'AveragePool' and kernel == strides == [1, 1]):
      pass
    elif operator == 'Conv' and plain and len({*pads}) == 1 and len(node.input) == 3:
      row = layers.Conv('', 0, kernel[0], strides[0], pads[0], given.get('group', 1))
      side = row.output_shape((side, side, 3))[0]
      yield _describe(row, side), node
    elif operator == 'MaxPool' and plain and pads[:2] == [0, 0] and pads[2] == pads[3]:
      free = side + pads[2] - kernel[0]
      side = (-(-free // strides[0]) if given.get('ceil_mode', 0) else free // strides[0]) + 1
      yield _describe(layers.MaxPool('', kernel[0], strides[0]), side), node
    elif operator == 'LRN':
      size, beta, k = given['size'], given.get('beta', 0.75), given.get('bias', 1.0)
      alpha = given.get('alpha', 1e-4) / size
      yield _describe(layers.ResponseNorm('', size, alpha, beta, k), side), node
    elif operator == 'Gemm' and not given.get('transA', 0) and len(node.input) == 3:
      factors = given.get('alpha', 1.0), given.get('beta', 1.0)
      yield 'a dense layer' if factors == (1, 1) else f'a Gemm of factors {factors}', node
    elif operator == 'Relu':
      yield 'a ReLU', node
    else:
      yield f'{_kind(node)} as no AlexNet has it', node
      return


def _kind(node: onnx.NodeProto) -> str:
  return f'an operator {node.op_type:.40}'


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
  return {given.name: helper.get_attribute_value(given) for given in node.attribute}


def _array(tensors: Mapping[str, onnx.TensorProto], name: str, folder: Path) -> np.ndarray:
  """The array of a name, which may lie in another file."""
  if name not in tensors:
    raise ValueError(f'its array {name:.60} is computed, not stored')
  tensor = tensors[name]
  if tensor.data_location == onnx.TensorProto.EXTERNAL:
    tensor.raw_data = _external({entry.key: entry.value for entry in tensor.external_data}, folder)
    tensor.data_location = onnx.TensorProto.DEFAULT
  return numpy_helper.to_array(tensor)


def _external(entry: Mapping[str, str], folder: Path) -> bytes:
  location = entry['location']
  name = f'its data file {location:.80}'
  try:
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
      raise ValueError(f'{name} is outside of its folder, where none is read')
    if not path.is_file():
      raise ValueError(f'{name} is not beside it: get that file too')
    start = int(entry.get('offset', 0))
    size = int(entry.get('length', path.stat().st_size - start))
    if min(start, size) < 0 or start + size > path.stat().st_size:
      raise ValueError(f'{name} is cut short')
    with path.open('rb') as file:
      file.seek(start)
      return file.read(size)
  except OSError as error:
    raise ValueError(f'{name} cannot be read: {error.strerror}') from None
