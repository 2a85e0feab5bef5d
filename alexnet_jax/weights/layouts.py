"""Converts arrays of torchvision and Caffe to the variables of our nets, and back.

Convolutions are (O, I, h, w) there and (h, w, I, O) here, dense layers (outputs, inputs) there and
(inputs, outputs) here; the first dense layer sees a map flattened as (C, H, W) there and (H, W, C)
here.  Groups are contiguous parts of the channels everywhere.  Sources:
torchvision/models/alexnet.py; BVLC/caffe models/bvlc_alexnet and models/bvlc_reference_caffenet.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import imagenet
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

Arrays = Mapping[str, np.ndarray]
Shape = layers.Shape

_TORCHVISION_NAMES = {
  f'{ours}/{kind}': f'{theirs}.{their_kind}'
  for ours, theirs in {
    'conv1': 'features.0',
    'conv2': 'features.3',
    'conv3': 'features.6',
    'conv4': 'features.8',
    'conv5': 'features.10',
    'fc6': 'classifier.1',
    'fc7': 'classifier.4',
    'fc8': 'classifier.6',
  }.items()
  for kind, their_kind in (('kernel', 'weight'), ('bias', 'bias'))
}
CAFFE_NETS = {'caffe': 'bvlc_alexnet', 'caffenet': 'bvlc_reference_caffenet'}
# ilsvrc_2012_mean.npy averaged over the pixels, of 0-255 RGB (in Caffe's files: BGR).
_CAFFE_MEAN = (122.679, 116.669, 104.007)
MAX_CLASSES = 1_000_000


def from_torchvision(arrays: Arrays, file: str) -> Pretrained:
  """The net of a state dict of torchvision's alexnet.

  Its input: shorter side to 256, center crop 224, [0, 1] standardized.

  Raises:
    ValueError: an array is missing, unknown, of another shape or not of finite floats.
  """
  # nn.DataParallel puts itself into the names, in front or, in PyTorch's ImageNet example, inside.
  arrays = {name.replace('module.', ''): array for name, array in arrays.items()}
  if not arrays.keys() & set(_TORCHVISION_NAMES.values()):
    found = ', '.join(f'{name:.40}' for name in list(arrays)[:4]) or 'none at all'
    raise ValueError(
      f"it has no array of torchvision's alexnet, such as features.0.weight, but {found}"
    )
  return _pretrained(
    f'torchvision alexnet, {file}',
    'owt',
    _parameters(arrays, 'owt', 224, _TORCHVISION_NAMES, channels_first=True),
    resize='crop',
    preprocessing=_torchvision_preprocessing(),
  )


def from_caffe(arrays: Arrays, net: str, file: str, *, channels_first: bool) -> Pretrained:
  """One of Caffe's nets, of arrays by '<layer>/kernel' and '<layer>/bias'.

  Its input: both sides to 256, center crop 227, 0-255 BGR minus the mean color.

  Args:
    arrays: all of the net's.
    net: 'caffe' or 'caffenet'.
    file: the name to call it by.
    channels_first: as in Caffe's own files; else they are in our own layout.

  Raises:
    ValueError: an array is missing, unknown, of another shape or not of finite floats.
  """
  if net not in CAFFE_NETS:
    raise ValueError(f'its layers are named as in Caffe: the net is one of {", ".join(CAFFE_NETS)}')
  names = {name: name for name in _TORCHVISION_NAMES}
  params = _parameters(arrays, net, 227, names, channels_first=channels_first)
  params['conv1']['kernel'] = np.ascontiguousarray(params['conv1']['kernel'][:, :, ::-1])
  return _pretrained(
    f'Caffe {CAFFE_NETS[net]}, {file}',
    net,
    params,
    resize='warp',
    preprocessing=_preprocessing(227, _CAFFE_MEAN, np.ones(3)),
  )


def _torchvision_preprocessing() -> Preprocessing:
  return _preprocessing(224, TORCHVISION_MEAN, 1 / np.array(TORCHVISION_STD))


def _preprocessing(crop: int, mean, scale) -> Preprocessing:
  return Preprocessing(
    crop=crop,
    mean=np.asarray(mean, np.float32),
    scale=np.asarray(scale, np.float32),
    color_basis=(np.array(COLOR_EIGENVECTORS_2012) * COLOR_STDEVS_2012).T.astype(np.float32),
  )


def _pretrained(source, net, params, *, resize, preprocessing) -> Pretrained:
  count = len(params['fc8']['bias'])
  published = imagenet.published_classes() if count == 1000 else ()
  return Pretrained(
    source=source,
    net=net,
    variables={'params': params, 'batch_stats': {}},
    classes=published or tuple(f'class {number}' for number in range(count)),
    image_size=256,
    resize=resize,
    preprocessing=preprocessing,
  )


def _parameters(
  arrays: Arrays, net: str, crop: int, names: Mapping[str, str], *, channels_first: bool
) -> dict[str, dict[str, np.ndarray]]:
  """The parameters of a net, whose number of classes follows from the last layer.

  Args:
    arrays: by their names in the file.
    net: a key of NETS.
    crop: side of its input.
    names: from ours, '<layer>/<parameter>', to theirs.
    channels_first: kernels are (O, I, h, w) and (outputs, inputs), else as ours.
  """
  bias = names['fc8/bias']
  if bias not in arrays:
    raise ValueError(f'it lacks array {bias}')
  shape = arrays[bias].shape
  if len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
    raise ValueError(f'{bias} is {_shape_text(shape)}, not one number for each class')
  rows = _weighted(NETS[net](shape[0]), crop)
  wanted = {}
  for row, inputs in rows:
    for kind, shape in row.parameters(inputs).items():
      theirs = channels_first and kind == 'kernel'
      wanted[names[f'{row.name}/{kind}']] = _theirs_shape(row, inputs) if theirs else shape
  found = checked(arrays, wanted, net)
  params = {}
  for row, inputs in rows:
    params[row.name] = {kind: found[names[f'{row.name}/{kind}']] for kind in row.parameters(inputs)}
    if channels_first:
      params[row.name]['kernel'] = _to_ours(params[row.name]['kernel'], row, inputs)
  return params


def _weighted(table: layers.Table, crop: int) -> list[tuple[layers.Row, Shape]]:
  """The rows with parameters, and the shapes of their inputs."""
  walked = layers.walk(table, (crop, crop, 3))
  return [(row, inputs) for row, inputs, _ in walked if row.parameters(inputs)]


def _channels_first(row: layers.Row, inputs: Shape) -> Shape:
  """(O, I, h, w) of a kernel; a vector counts as a map of one pixel."""
  kernel = row.parameters(inputs)['kernel']
  if isinstance(row, layers.Dense):
    kernel = (*(inputs if len(inputs) == 3 else (1, 1, *inputs)), kernel[-1])
  height, width, channels, features = kernel
  return features, channels, height, width


def _theirs_shape(row: layers.Row, inputs: Shape) -> Shape:
  shape = _channels_first(row, inputs)
  return (shape[0], math.prod(shape[1:])) if isinstance(row, layers.Dense) else shape


def _to_ours(kernel: np.ndarray, row: layers.Row, inputs: Shape) -> np.ndarray:
  moved = kernel.reshape(_channels_first(row, inputs)).transpose(2, 3, 1, 0)
  return np.ascontiguousarray(moved).reshape(row.parameters(inputs)['kernel'])


def _to_theirs(kernel: np.ndarray, row: layers.Row, inputs: Shape) -> np.ndarray:
  features, channels, height, width = _channels_first(row, inputs)
  moved = kernel.reshape(height, width, channels, features).transpose(3, 2, 0, 1)
  return np.ascontiguousarray(moved).reshape(_theirs_shape(row, inputs))


def checked(arrays: Arrays, wanted: Mapping[str, Shape], net: str) -> dict[str, np.ndarray]:
  """The arrays as float32.

  Raises:
    ValueError: one is missing, unknown, of another shape or not of finite floats.
  """
  for name in sorted(wanted.keys() ^ arrays.keys()):
    raise ValueError(f'it {"lacks" if name in wanted else "has an unknown"} array {name:.60}')
  for name, shape in wanted.items():
    found = arrays[name]
    if found.shape != shape:
      raise ValueError(
        f'{name} is {_shape_text(found.shape)}, but net {net} needs {_shape_text(shape)}'
      )
    if not jnp.issubdtype(found.dtype, jnp.floating):
      raise ValueError(f'{name} is of type {found.dtype}, not of floats')
  result = {}
  for name in wanted:
    with np.errstate(over='ignore', invalid='ignore'):
      result[name] = np.array(arrays[name], np.float32, order='C')
    if not np.isfinite(result[name]).all():
      raise ValueError(f'{name} has values that are not finite numbers')
  return result


def _shape_text(shape: Shape) -> str:
  """(3, 4) -> '3x4'."""
  return 'x'.join(map(str, shape[:8])) or 'scalar'


def torchvision_state(pretrained: Pretrained) -> dict[str, np.ndarray]:
  """The state dict of torchvision's alexnet.

  Raises:
    ValueError: of another net, or of one that wants another input than torchvision's.
  """
  if pretrained.net != 'owt' or pretrained.ablations:
    edits = ''.join(f' with {name}' for name in pretrained.ablations)
    raise ValueError(
      f"torchvision has no net {pretrained.net}{edits}, only owt: its files cannot hold this one's"
      ' layers'
    )
  ours, theirs = pretrained.preprocessing, _torchvision_preprocessing()
  same = ours.crop == theirs.crop and all(
    np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-5)
    for a, b in ((ours.mean, theirs.mean), (ours.scale, theirs.scale))
  )
  if not same:
    raise ValueError(
      "torchvision's files cannot say how the input is normalized, and this net wants it otherwise"
      f' than torchvision (crop {ours.crop}, scale {ours.scale.tolist()})'
    )
  state = {}
  for row, inputs in _weighted(pretrained.table, ours.crop):
    values = pretrained.variables['params'][row.name]
    kernel = _to_theirs(np.asarray(values['kernel']), row, inputs)
    state[_TORCHVISION_NAMES[f'{row.name}/kernel']] = kernel
    state[_TORCHVISION_NAMES[f'{row.name}/bias']] = np.asarray(values['bias'])
  return state
