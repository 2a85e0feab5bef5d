"""Weight files as others write them, and what the nets in them compute, with torch and protobuf."""

import io
import pickle
import struct
from unittest import mock

import numpy as np

from alexnet_jax.model import nets
from helpers.narrow import narrow

TORCHVISION_NAMES = (
  *('features.0', 'features.3', 'features.6', 'features.8', 'features.10'),
  *('classifier.1', 'classifier.4', 'classifier.6'),
)
CAFFE_NAMES = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8')
WIDTHS = {  # published, of the convolutions and the two hidden dense layers
  'owt': ((64, 192, 384, 256, 256), 4096),
  'caffe': ((96, 256, 384, 384, 256), 4096),
}
WIDTHS['caffenet'] = WIDTHS['caffe']
DIVISOR = 24


def narrow_nets(names=tuple(WIDTHS)):
  """Patches nets to a 24th of their channels, so that files of them are small."""
  thin = {
    name: lambda classes, table=nets.NETS[name]: narrow(table(classes), DIVISOR) for name in names
  }
  return mock.patch.dict(nets.NETS, thin)


def widths(net, divisor):
  convolutions, hidden = WIDTHS[net]
  return tuple(width // divisor for width in convolutions), hidden // divisor


def random_arrays(net, classes=7, divisor=DIVISOR, seed=0):
  """(kernel, bias) float32 by layer, (O, I, h, w) and (outputs, inputs) as in torch and Caffe.

  The values are multiples of 1/256, which every type of float holds.
  """
  rng = np.random.default_rng(seed)
  (c1, c2, c3, c4, c5), hidden = widths(net, divisor)
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


# What the nets compute, of images in 0-255 RGB (N, side, side, 3).


def torchvision_logits(arrays, images):
  """As torchvision.models.alexnet in evaluation, after its transforms."""
  import torch
  from torch import nn

  (k1, k2, k3, k4, k5, d1, d2, d3), _ = zip(*arrays, strict=True)
  pool, relu = nn.MaxPool2d(3, 2), nn.ReLU()
  model = nn.Module()
  model.features = nn.Sequential(
    *(nn.Conv2d(3, len(k1), 11, 4, 2), relu, pool),
    *(nn.Conv2d(len(k1), len(k2), 5, padding=2), relu, pool),
    *(nn.Conv2d(len(k2), len(k3), 3, padding=1), relu),
    *(nn.Conv2d(len(k3), len(k4), 3, padding=1), relu),
    *(nn.Conv2d(len(k4), len(k5), 3, padding=1), relu, pool),
  )
  model.classifier = nn.Sequential(
    *(nn.Dropout(), nn.Linear(len(k5) * 36, len(d1)), relu),
    *(nn.Dropout(), nn.Linear(len(d1), len(d2)), relu, nn.Linear(len(d2), len(d3))),
  )
  model.load_state_dict(state_dict(arrays))  # strict: these are torchvision's names
  model.eval()
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  x = ((torch.from_numpy(np.float32(images)) / 255 - mean) / std).permute(0, 3, 1, 2)
  with torch.no_grad():
    return model.classifier(torch.flatten(model.features(x), 1)).numpy()


def caffe_logits(net, arrays, images):
  """As bvlc_alexnet's or bvlc_reference_caffenet's deploy.prototxt."""
  import torch
  from test_alexnet import caffe

  weights = {
    name: {'kernel': torch.from_numpy(kernel), 'bias': torch.from_numpy(bias)}
    for name, (kernel, bias) in caffe_tensorflow_layers(arrays).items()
  }
  bgr = np.float32(images)[..., ::-1] - np.float32([104.007, 116.669, 122.679])
  x = torch.from_numpy(bgr.copy()).permute(0, 3, 1, 2)
  return caffe(weights, x, lambda name, x: x, pool_first=net == 'caffenet').numpy()


# Files.


def state_dict(arrays, prefix=''):
  import collections

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
  message = _caffe_messages()['NetParameter']()
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


def _caffe_messages():
  """Classes for the part of caffe.proto that weights are in."""
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
  return {
    name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}'))
    for name in messages
  }


class Evil:
  """Runs a command when it is unpickled."""

  def __init__(self, function, *arguments):
    self._reduced = (function, arguments)

  def __reduce__(self):
    return self._reduced


def pickled(value):
  return pickle.dumps(value, protocol=2)
