"""Converts arrays of torchvision and Caffe to the variables of our nets, and back.

Convolutions are (O, I, h, w) there and (h, w, I, O) here, dense layers (outputs, inputs) there and
(inputs, outputs) here; the first dense layer sees a map flattened as (C, H, W) there and (H, W, C)
here.  Groups are contiguous parts of the channels everywhere.  Sources:
torchvision/models/alexnet.py; BVLC/caffe models/bvlc_alexnet and models/bvlc_reference_caffenet.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from alexnet_jax.data import imagenet
from alexnet_jax.model import layers, nets
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

_TORCHVISION_LAYERS = {
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
  'fc6': 'classifier.1',
  'fc7': 'classifier.4',
  'fc8': 'classifier.6',
}
_TORCHVISION_NAMES = {
  f'params/{ours}/{kind}': f'{theirs}.{their_kind}'
  for ours, theirs in _TORCHVISION_LAYERS.items()
  for kind, their_kind in (('kernel', 'weight'), ('bias', 'bias'))
}
_CAFFE_NAMES = {name: name.removeprefix('params/') for name in _TORCHVISION_NAMES}
_MAPS = ('conv1', 'pool1', 'pool2', 'pool5')  # rows whose sides say which geometry a net has
_MAP = (6, 6)  # height and width of what the first dense layer, fc6, sees
MAX_CLASSES = 1_000_000


def _published(source: str, net: str, resize: str, crop: int, mean, scale) -> Pretrained:
  """A net of others without its weights."""
  preprocessing = Preprocessing(
    crop=crop,
    mean=np.asarray(mean, np.float32),
    scale=np.asarray(scale, np.float32),
    color_basis=(np.array(COLOR_EIGENVECTORS_2012) * COLOR_STDEVS_2012).T.astype(np.float32),
  )
  return Pretrained(source, net, {}, (), 256, resize, preprocessing)


# Shorter side to 256, center crop 224, [0, 1] standardized.
_TORCHVISION = _published(
  'torchvision alexnet', 'owt', 'crop', 224, TORCHVISION_MEAN, 1 / np.array(TORCHVISION_STD)
)
# Both sides to 256, center crop 227, 0-255 minus ilsvrc_2012_mean.npy averaged over the pixels.
_CAFFE = {
  net: _published(f'Caffe {name}', net, 'warp', 227, (122.679, 116.669, 104.007), np.ones(3))
  for net, name in {'caffe': 'bvlc_alexnet', 'caffenet': 'bvlc_reference_caffenet'}.items()
}
# The same weights on another geometry: center crop 224.
_ONNX = {
  f'{net}_onnx': dataclasses.replace(
    published, source=f"the ONNX model zoo's {published.source}", net=f'{net}_onnx'
  )
  for net, published in _CAFFE.items()
}


def from_torchvision(arrays: Arrays, file: str) -> Pretrained:
  """The net in a state dict of torchvision's alexnet.

  Raises:
    ValueError: an array is missing, unknown, of another shape or not of finite floats.
  """
  # nn.DataParallel puts itself into the names, in front or, in PyTorch's ImageNet example, inside.
  arrays = {name.replace('module.', ''): array for name, array in arrays.items()}
  first = _TORCHVISION_NAMES['params/conv1/kernel']
  prefixes = [name.removesuffix(first) for name in arrays if name.endswith(first)]
  if len(prefixes) > 1:
    raise ValueError(f'it has several nets, {prefixes[0]!r:.40} and {prefixes[1]!r:.40}: save one')
  if prefixes and prefixes[0]:  # of Lightning's module, which may have arrays besides the net's
    arrays = {
      name.removeprefix(prefixes[0]): array
      for name, array in arrays.items()
      if name.startswith(prefixes[0])
    }
  if not arrays.keys() & set(_TORCHVISION_NAMES.values()):
    found = ', '.join(f'{name:.40}' for name in list(arrays)[:4]) or 'none at all'
    raise ValueError(
      f"it has no array of torchvision's alexnet, such as features.0.weight, but {found}"
    )
  return _with_arrays(_TORCHVISION, arrays, _TORCHVISION_NAMES, file)


def from_caffe(arrays: Arrays, net: str, file: str) -> Pretrained:
  """'caffe' or 'caffenet' of arrays by '<layer>/kernel' and '<layer>/bias', whose input is BGR.

  Raises:
    ValueError: an array is missing, unknown, of another shape or not of finite floats.
  """
  if net not in _CAFFE:
    raise ValueError(f'its layers are named as in Caffe: the net is one of {", ".join(_CAFFE)}')
  return _in_rgb(_with_arrays(_CAFFE[net], arrays, _CAFFE_NAMES, file))


def from_onnx(arrays: Arrays, net: str, crop: int, file: str) -> Pretrained:
  """The net of arrays by '<layer>/kernel' and '<layer>/bias', whose input is BGR but for 'owt'.

  Raises:
    ValueError: an array is of another shape than in the net, or not of finite floats.
  """
  published = {'owt': _TORCHVISION, **_CAFFE, **_ONNX}[net]
  preprocessing = dataclasses.replace(published.preprocessing, crop=crop)
  published = dataclasses.replace(published, preprocessing=preprocessing)
  table = nets.make_table(net, 2, crop)
  sides = [s[0] for row, _, s in layers.walk(table, (crop, crop, 3)) if row.name in _MAPS]
  geometry = f'views of {crop} and maps of {", ".join(map(str, sides))}'
  found = _with_arrays(published, arrays, _CAFFE_NAMES, f'{file}, ONNX with {geometry}')
  return found if net == 'owt' else _in_rgb(found)


def _in_rgb(found: Pretrained) -> Pretrained:
  """A net whose first kernel was for BGR."""
  conv1 = found.variables['params']['conv1']
  conv1['kernel'] = np.ascontiguousarray(conv1['kernel'][:, :, ::-1])
  return found


def _with_arrays(
  published: Pretrained, arrays: Arrays, names: Mapping[str, str], file: str
) -> Pretrained:
  """The net with weights, checked and converted; their names are the values of `names`."""
  bias = names['params/fc8/bias']
  if bias not in arrays:
    raise ValueError(f'it lacks array {bias}')
  shape = arrays[bias].shape
  if len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
    raise ValueError(f'{bias} is {_shape_text(shape)}, not one number for each class')
  count, net = shape[0], published.net
  wanted = {
    names[name]: shape[::-1] if len(shape) < 4 else (shape[3], shape[2], *shape[:2])
    for name, shape in shapes(nets.NETS[net](count), published.preprocessing.crop).items()
  }
  found = checked(arrays, wanted, net)
  params = {name: _to_ours(name, found[theirs]) for name, theirs in names.items()}
  wnids = imagenet.published_classes() if count == 1000 else ()
  return dataclasses.replace(
    published,
    source=f'{published.source}, {file}',
    variables={**unflatten_dict(params, sep='/'), 'batch_stats': {}},
    classes=wnids or tuple(f'class {number}' for number in range(count)),
  )


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
  if name.endswith('fc6/kernel'):
    outputs = len(array)
    maps = array.reshape(outputs, -1, *_MAP).transpose(2, 3, 1, 0)
    return np.ascontiguousarray(maps).reshape(-1, outputs)
  return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def to_theirs(name: str, array: np.ndarray) -> np.ndarray:
  """The array '<layer>/<parameter>' as torchvision and Caffe order it."""
  if name.endswith('fc6/kernel'):
    maps = array.reshape(*_MAP, -1, *array.shape[1:]).T  # (O, C, W, H)
    return np.ascontiguousarray(maps.swapaxes(-1, -2)).reshape(len(maps), -1)
  return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def shapes(table: layers.Table, crop: int) -> dict[str, Shape]:
  """The shapes of a net's variables by '<collection>/<layer>/<parameter>'."""
  found = {}
  for row, inputs, _ in layers.walk(table, (crop, crop, 3)):
    for name, shape in row.parameters(inputs).items():
      found[f'params/{row.name}/{name}'] = shape
    if isinstance(row, layers.BatchNorm):
      found |= {f'batch_stats/{row.name}/{name}': inputs[-1:] for name in ('mean', 'var')}
  return found


def checked(arrays: Arrays, wanted: Mapping[str, Shape], net: str) -> dict[str, np.ndarray]:
  """The arrays as float32.

  Raises:
    ValueError: one is missing, unknown, of another shape or not of finite floats.
  """
  for name in sorted(wanted.keys() ^ arrays.keys()):
    raise ValueError(f'it {"lacks" if name in wanted else "has an unknown"} array {name:.60}')
  for name, shape in wanted.items():  # all, before anything of an unexpected size is copied
    if arrays[name].shape != shape:
      found = _shape_text(arrays[name].shape)
      raise ValueError(f'{name} is {found}, but net {net} needs {_shape_text(shape)}')
  result = {}
  for name in wanted:
    if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
      raise ValueError(f'{name} is of type {arrays[name].dtype}, not of floats')
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
  if (name := nets.title(pretrained)) != 'owt':
    raise ValueError(
      f"torchvision has no net {name}, only owt: its files cannot hold this one's layers"
    )
  ours, theirs = pretrained.preprocessing, _TORCHVISION.preprocessing
  same = ours.crop == theirs.crop and all(
    np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-5)
    for a, b in ((ours.mean, theirs.mean), (ours.scale, theirs.scale))
  )
  if not same:
    raise ValueError(
      "torchvision's files cannot say how the input is normalized, and this net wants it otherwise"
      f' than torchvision (crop {ours.crop}, scale {ours.scale.tolist()})'
    )
  params = flatten_dict({'params': pretrained.variables['params']}, sep='/')
  return {
    theirs: to_theirs(name, np.asarray(params[name])) for name, theirs in _TORCHVISION_NAMES.items()
  }
