"""Converts arrays of torchvision and Caffe to the variables of our nets, and back.

Convolutions are (O, I, h, w) there and (h, w, I, O) here, dense layers (outputs, inputs) there and
(inputs, outputs) here; the first dense layer sees a map flattened as (C, H, W) there and (H, W, C)
here.  Groups are contiguous parts of the channels everywhere.  Sources:
torchvision/models/alexnet.py; BVLC/caffe models/bvlc_alexnet and models/bvlc_reference_caffenet.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from alexnet_jax.model import layers
from alexnet_jax.model.nets import NETS
from alexnet_jax.model.preprocessing import (
  COLOR_EIGENVECTORS_2012,
  COLOR_STDEVS_2012,
  TORCHVISION_MEAN,
  TORCHVISION_STD,
  Preprocessing,
)
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights.lazy_array import LazyArray, Shape, shape_text

TORCHVISION_LAYERS = {
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
  'fc6': 'classifier.1',
  'fc7': 'classifier.4',
  'fc8': 'classifier.6',
}
IMAGE_SIZE = 256
# ilsvrc_2012_mean.npy averaged over the pixels, of 0-255 RGB (in Caffe's files: BGR).
CAFFE_MEAN = (122.679, 116.669, 104.007)
MAX_CLASSES = 1_000_000

Parameters = dict[str, dict[str, np.ndarray]]


def torchvision_preprocessing() -> Preprocessing:
  """Torchvision's: shorter side to 256, center crop 224, [0, 1] standardized."""
  return _preprocessing(224, TORCHVISION_MEAN, 1 / np.array(TORCHVISION_STD))


def caffe_preprocessing() -> Preprocessing:
  """BVLC's: both sides to 256, center crop 227, 0-255 minus the mean color."""
  return _preprocessing(227, CAFFE_MEAN, np.ones(3))


def _preprocessing(crop: int, mean, scale) -> Preprocessing:
  basis = (np.array(COLOR_EIGENVECTORS_2012) * COLOR_STDEVS_2012).T
  arrays = (np.asarray(array, np.float32) for array in (mean, scale, basis))
  return Preprocessing(crop, *arrays)


def torchvision_layers(blobs: Mapping[str, LazyArray]) -> dict[str, tuple[LazyArray, ...]]:
  """Kernel and bias by our layer, of a state dict.

  Raises:
    ValueError: an array is missing, or there is one that torchvision's alexnet does not have.
  """
  # nn.DataParallel puts itself into the names, in front or, in PyTorch's ImageNet example, inside.
  blobs = {name.replace('module.', ''): found for name, found in blobs.items()}
  names = {
    layer: [f'{theirs}.weight', f'{theirs}.bias'] for layer, theirs in TORCHVISION_LAYERS.items()
  }
  known = [name for pair in names.values() for name in pair]
  if not blobs.keys() & set(known):
    raise ValueError(
      f"it has no array of torchvision's alexnet, such as features.0.weight, but {some(blobs)}"
    )
  for name in blobs:
    if name not in known:
      raise ValueError(f"it has {name:.60}, which torchvision's alexnet has not")
  for name in known:
    if name not in blobs:
      raise ValueError(f"it lacks {name}, which torchvision's alexnet has")
  return {layer: tuple(blobs[name] for name in pair) for layer, pair in names.items()}


def some(names: Iterable[str]) -> str:
  shown = [f'{name:.40}' for name in list(names)[:4]]
  return ', '.join(shown) or 'none at all'


def parameters(
  net: str, crop: int, found: Mapping[str, tuple[LazyArray, ...]], *, rows_first: bool, bgr: bool
) -> Parameters:
  """The parameters of a net.

  Args:
    net: a key of NETS; its number of classes follows from the last layer.
    crop: side of its input.
    found: (kernel, bias) by layer.
    rows_first: kernels are (O, I, h, w) and (outputs, inputs), as in torch and Caffe; else they are
      in our own layout.
    bgr: the first layer wants blue first.

  Raises:
    ValueError: a layer is missing, not of this net, of another shape, or has values that are not
      finite float32 numbers.
  """
  table = NETS[net](_count_classes(net, found))
  rows = {row.name: (row, inputs) for row, inputs, _ in layers.walk(table, (crop, crop, 3))}
  weighted = [name for name, (row, inputs) in rows.items() if row.parameters(inputs)]
  for name in found:
    if name not in weighted:
      raise ValueError(f'layer {name:.40} is not one of net {net}: {", ".join(weighted)}')
  result = {}
  for name in weighted:
    row, inputs = rows[name]
    kernel, bias = _pair(net, name, found)
    ours = row.parameters(inputs)['kernel']
    wanted = _theirs_shape(row, inputs) if rows_first else ours
    array = checked(kernel, f'layer {name}: kernel', wanted, net)
    result[name] = {
      'kernel': _to_ours(array, row, inputs) if rows_first else array,
      'bias': checked(bias, f'layer {name}: bias', (row.features,), net),
    }
  if bgr:
    first = result[weighted[0]]
    first['kernel'] = np.ascontiguousarray(first['kernel'][:, :, ::-1])
  return result


def _pair(net: str, name: str, found) -> tuple[LazyArray, LazyArray]:
  if len(found.get(name, ())) != 2:
    what = f'{len(found[name])} arrays instead of kernel and bias' if name in found else 'no array'
    raise ValueError(f'layer {name} of net {net} has {what}')
  return found[name]


def _count_classes(net: str, found) -> int:
  """The length of the bias of the last layer."""
  last = NETS[net](2)[-1].name
  shape = _pair(net, last, found)[1].shape
  if len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
    raise ValueError(f'layer {last}: bias is {shape_text(shape)}, not one number for each class')
  return shape[0]


def _channels_first(row: layers.Conv | layers.Dense, inputs: Shape) -> Shape:
  """(O, I, h, w) of a kernel; a vector counts as a map of one pixel."""
  if isinstance(row, layers.Dense):
    height, width, channels = inputs if len(inputs) == 3 else (1, 1, *inputs)
    return row.features, channels, height, width
  height, width, channels, features = row.parameters(inputs)['kernel']
  return features, channels, height, width


def _theirs_shape(row: layers.Conv | layers.Dense, inputs: Shape) -> Shape:
  shape = _channels_first(row, inputs)
  return (shape[0], math.prod(shape[1:])) if isinstance(row, layers.Dense) else shape


def _to_ours(kernel: np.ndarray, row, inputs: Shape) -> np.ndarray:
  moved = kernel.reshape(_channels_first(row, inputs)).transpose(2, 3, 1, 0)
  return np.ascontiguousarray(moved).reshape(row.parameters(inputs)['kernel'])


def _to_theirs(kernel: np.ndarray, row, inputs: Shape) -> np.ndarray:
  features, channels, height, width = _channels_first(row, inputs)
  moved = kernel.reshape(height, width, channels, features).transpose(3, 2, 0, 1)
  return np.ascontiguousarray(moved).reshape(_theirs_shape(row, inputs))


def checked(found: LazyArray, what: str, wanted: Shape, net: str) -> np.ndarray:
  """The array as float32.

  Raises:
    ValueError: of another shape, or with values that are not finite in float32.
  """
  if found.shape != wanted:
    raise ValueError(
      f'{what} is {shape_text(found.shape)}, but net {net} needs {shape_text(wanted)}'
    )
  with np.errstate(over='ignore', invalid='ignore'):
    array = np.array(found.read(), np.float32, order='C')
  if not np.isfinite(array).all():
    raise ValueError(f'{what} has values that are not finite numbers')
  return array


def torchvision_state(pretrained: Pretrained) -> dict[str, np.ndarray]:
  """The state dict of torchvision's alexnet.

  Raises:
    ValueError: of another net, or of one that wants another input than torchvision's.
  """
  if pretrained.net != 'owt':
    raise ValueError(
      f"torchvision has no net {pretrained.net}, only owt: its files cannot hold this one's layers"
    )
  ours, theirs = pretrained.preprocessing, torchvision_preprocessing()
  same = ours.crop == theirs.crop and all(
    np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-5)
    for a, b in ((ours.mean, theirs.mean), (ours.scale, theirs.scale))
  )
  if not same:
    raise ValueError(
      "torchvision's files cannot say how the input is normalized, and this net wants it otherwise"
      f' than torchvision (crop {ours.crop}, scale {ours.scale.tolist()})'
    )
  if pretrained.ablations:
    raise ValueError(f"torchvision's net has no edits such as {pretrained.ablations[0]}")
  state = {}
  for row, inputs, _ in layers.walk(pretrained.table, (ours.crop, ours.crop, 3)):
    if row.parameters(inputs):
      values, name = pretrained.variables['params'][row.name], TORCHVISION_LAYERS[row.name]
      state[f'{name}.weight'] = _to_theirs(np.asarray(values['kernel']), row, inputs)
      state[f'{name}.bias'] = np.asarray(values['bias'])
  return state
