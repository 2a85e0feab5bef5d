"""Weight files as others write them, and what the nets in them compute, with torch and protobuf."""

import collections
import io
import pickle
import struct
from unittest import mock

import numpy as np

from alexnet_jax.model import layers, nets

TORCHVISION_NAMES = (
  *('features.0', 'features.3', 'features.6', 'features.8', 'features.10'),
  *('classifier.1', 'classifier.4', 'classifier.6'),
)
CAFFE_NAMES = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8')
WIDTHS = {  # published, of the convolutions
  'owt': (64, 192, 384, 256, 256),
  'caffe': (96, 256, 384, 384, 256),
  'caffenet': (96, 256, 384, 384, 256),
}
DIVISOR = 16


def narrow_nets(names=(*WIDTHS, 'caffe_onnx', 'caffenet_onnx')):
  """Patches nets to a 16th of their channels, so that files of them are small."""
  thin = {
    name: lambda classes, table=nets.NETS[name]: layers.narrow(table(classes), DIVISOR)
    for name in names
  }
  return mock.patch.dict(nets.NETS, thin)


def random_arrays(net, classes=7, divisor=DIVISOR, seed=0):
  """(kernel, bias) float32 by layer, (O, I, h, w) and (outputs, inputs) as in torch and Caffe.

  The values are multiples of 1/256, which every type of float holds.
  """
  rng = np.random.default_rng(seed)
  c1, c2, c3, c4, c5, hidden = (width // divisor for width in (*WIDTHS[net], 4096))
  groups = 1 if net == 'owt' else 2
  shapes = (
    *((c1, 3, 11, 11), (c2, c1 // groups, 5, 5), (c3, c2, 3, 3)),
    *((c4, c3 // groups, 3, 3), (c5, c4 // groups, 3, 3)),
    *((hidden, c5 * 36), (hidden, hidden), (classes, hidden)),
  )

  def draw(shape, std):
    levels = rng.standard_normal(shape, dtype=np.float32) * np.float32(256 * std)
    return levels.clip(-255, 255).round() / np.float32(256)

  return [(draw(s, np.sqrt(2 / np.prod(s[1:]))), draw(s[0], 0.1)) for s in shapes]


def logits(net, arrays, images):
  """What a net computes of images in 0-255 RGB (N, side, side, 3).

  That is torchvision's (models/alexnet.py), after its transforms, or bvlc_alexnet's or
  bvlc_reference_caffenet's (deploy.prototxt).
  """
  import torch
  from torch.nn import functional as F

  def pool(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)

  def norm(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

  x = np.float32(images)
  if net == 'owt':
    x = (x / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    geometry = ((4, 2, 1), (1, 2, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
  else:
    x = x[..., ::-1] - np.float32([104.007, 116.669, 122.679])
    geometry = ((4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2))
  after = {'owt': (pool,), 'caffe': (norm, pool), 'caffenet': (pool, norm)}[net]
  x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  tensors = [tuple(map(torch.from_numpy, pair)) for pair in arrays]
  for layer, (stride, padding, groups) in enumerate(geometry):
    x = F.relu(F.conv2d(x, *tensors[layer], stride, padding, groups=groups))
    for function in after if layer < 2 else ():
      x = function(x)
  x = F.relu(F.linear(pool(x).flatten(1), *tensors[5]))
  return F.linear(F.relu(F.linear(x, *tensors[6])), *tensors[7]).numpy()


# Files.


def state_dict(arrays, prefix=''):
  import torch

  return collections.OrderedDict(
    (f'{prefix}{name}.{kind}', torch.from_numpy(array.copy()))
    for name, pair in zip(TORCHVISION_NAMES, arrays, strict=True)
    for kind, array in zip(('weight', 'bias'), pair, strict=True)
  )


def torch_file(value, *, legacy=False):
  import torch

  buffer = io.BytesIO()
  torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
  return buffer.getvalue()


def safetensors_file(arrays):
  import safetensors.torch

  return safetensors.torch.save(dict(state_dict(arrays)))


def npy_file(layers_by_name):
  """As caffe-tensorflow wrote it: np.save of a dict."""
  buffer = io.BytesIO()
  np.save(buffer, layers_by_name, allow_pickle=True)
  return buffer.getvalue()


def caffe_tensorflow_layers(arrays):
  """Its layout: (h, w, I, O), (inputs, outputs), the first dense layer's inputs in H, W, C."""
  result = {}
  for name, (kernel, bias) in zip(CAFFE_NAMES, arrays, strict=True):
    if kernel.ndim == 4:
      kernel = kernel.transpose(2, 3, 1, 0)
    elif name == 'fc6':
      maps = kernel.reshape(len(kernel), -1, 6, 6)
      kernel = np.stack([one.transpose(1, 2, 0).ravel() for one in maps], axis=1)
    else:
      kernel = kernel.T
    result[name] = [np.ascontiguousarray(kernel), bias]
  return result


class _Python2Pickler(pickle._Pickler):
  """Writes bytes and text as Python 2's `str`, which Python 3 never does."""

  dispatch = dict(pickle._Pickler.dispatch)

  def save_string(self, data):
    data = data.encode() if isinstance(data, str) else data
    self.write(b'T' + struct.pack('<I', len(data)) + data)

  dispatch[bytes] = dispatch[str] = save_string


def python2_npy_file(layers_by_name):
  """The same as `npy_file` from Python 2 and its NumPy."""
  buffer, array = io.BytesIO(), np.array(layers_by_name)
  header = np.lib.format.header_data_from_array_1_0(array)
  np.lib.format.write_array_header_1_0(buffer, header)
  _Python2Pickler(buffer, protocol=2).dump(array)
  return buffer.getvalue().replace(b'numpy._core', b'numpy.core')


def caffe_file(net, arrays, *, v1=False, plain=False, classifier='fc8'):
  """A .caffemodel by the protobuf library.

  Args:
    net: 'caffe' or 'caffenet'.
    arrays: as `random_arrays`.
    v1: of V1LayerParameter, blobs with num, channels, height, width; else they have a shape.
    plain: leave out layers without weights, and the name of the net.
    classifier: name of the last layer.
  """
  message = _net_parameter()
  types = {'norm': ('LRN', 15), 'pool': ('Pooling', 17), 'relu': ('ReLU', 18)}
  types |= {'conv': ('Convolution', 4), 'fc': ('InnerProduct', 14), 'data': ('Data', 5)}
  first, second = ('norm', 'pool') if net == 'caffe' else ('pool', 'norm')
  names = ['data', 'conv1', 'relu1', f'{first}1', f'{second}1', 'conv2', 'relu2', f'{first}2']
  names += [f'{second}2', *CAFFE_NAMES[2:5], 'pool5', *CAFFE_NAMES[5:]]
  if plain:
    names = CAFFE_NAMES
  else:
    message.name = {'caffe': 'AlexNet', 'caffenet': 'CaffeNet'}[net]
  by_name = dict(zip(CAFFE_NAMES, arrays, strict=True))
  for name in names:
    layer = (message.layers if v1 else message.layer).add()
    layer.name = classifier if name == 'fc8' else name
    layer.type = types[name.rstrip('0123456789')][v1]
    for array in by_name.get(name, ()):
      blob = layer.blobs.add(data=array.ravel())
      if v1:
        sizes = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = sizes
      else:
        blob.shape.dim.extend(array.shape)
  return message.SerializeToString()


def _net_parameter():
  """An empty message of the part of caffe.proto that weights are in."""
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  messages = {  # 'many' numbers are packed, as [packed = true] says there
    'BlobShape': ('dim 1 INT64 many',),
    'BlobProto': (
      *('num 1 INT32', 'channels 2 INT32', 'height 3 INT32', 'width 4 INT32'),
      *('data 5 FLOAT many', 'shape 7 BlobShape'),
    ),
    'V1LayerParameter': ('name 4 STRING', 'type 5 INT32', 'blobs 6 BlobProto many'),
    'LayerParameter': ('name 1 STRING', 'type 2 STRING', 'blobs 7 BlobProto many'),
    'NetParameter': (
      *('name 1 STRING', 'layers 2 V1LayerParameter many', 'layer 100 LayerParameter many'),
    ),
  }
  types = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name='caffe_part.proto', package='caffe')
  for message, fields in messages.items():
    described = file.message_type.add(name=message)
    for name, number, kind, *many in map(str.split, fields):
      field = described.field.add(name=name, number=int(number))
      field.label = types.LABEL_REPEATED if many else types.LABEL_OPTIONAL
      if kind in messages:
        field.type, field.type_name = types.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = types.Type.Value(f'TYPE_{kind}')
        field.options.packed = bool(many)
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))()


class Evil:
  """Runs a command when it is unpickled."""

  def __init__(self, function, *arguments):
    self._reduced = (function, arguments)

  def __reduce__(self):
    return self._reduced
