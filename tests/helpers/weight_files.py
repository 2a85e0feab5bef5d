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
  """(kernel, bias) float32 by layer, (O, I, h, w) and (outputs, inputs) as in torch and Caffe."""
  rng = np.random.default_rng(seed)
  (c1, c2, c3, c4, c5), hidden = widths(net, divisor)
  groups = 1 if net == 'owt' else 2
  shapes = (
    *((c1, 3, 11, 11), (c2, c1 // groups, 5, 5), (c3, c2, 3, 3)),
    *((c4, c3 // groups, 3, 3), (c5, c4 // groups, 3, 3)),
    *((hidden, c5 * 36), (hidden, hidden), (classes, hidden)),
  )

  def pair(shape):
    std = np.float32(np.sqrt(2 / np.prod(shape[1:])))
    kernel = rng.standard_normal(shape, dtype=np.float32) * std
    return kernel, rng.standard_normal(shape[0], dtype=np.float32) * np.float32(0.1)

  return [pair(shape) for shape in shapes]


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
  from torch.nn import functional as F

  arrays = [tuple(map(torch.from_numpy, pair)) for pair in arrays]
  bgr = np.float32(images)[..., ::-1] - np.float32([104.007, 116.669, 122.679])
  x = torch.from_numpy(bgr.copy()).permute(0, 3, 1, 2)

  def norm(x):
    return torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)(x)

  def pool(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)

  for layer, ((kernel, bias), geometry) in enumerate(
    zip(arrays, ((4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)), strict=False)
  ):
    stride, padding, groups = geometry
    x = F.relu(F.conv2d(x, kernel, bias, stride, padding, groups=groups))
    if layer < 2:
      x = pool(norm(x)) if net == 'caffe' else norm(pool(x))
  x = torch.flatten(pool(x), 1)
  for layer, (kernel, bias) in enumerate(arrays[5:]):
    x = F.linear(x, kernel, bias)
    x = F.relu(x) if layer < 2 else x
  return x.numpy()


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


def caffe_tensorflow_layers(arrays, channels):
  """Its layout: (h, w, I, O), (inputs, outputs), the first dense layer's inputs in H, W, C."""
  result = {}
  for name, (kernel, bias) in zip(CAFFE_NAMES, arrays, strict=True):
    if kernel.ndim == 4:
      kernel = kernel.transpose(2, 3, 1, 0)
    elif name == 'fc6':
      maps = kernel.reshape(-1, channels, 6, 6)
      kernel = np.stack([one.transpose(1, 2, 0).ravel() for one in maps], axis=1)
    else:
      kernel = kernel.T
    result[name] = [np.ascontiguousarray(kernel), bias]
  return result


def python2_npy_file(layers_by_name):
  """The same as Python 2 pickled it: bytes are its `str`, which Python 3 never writes."""

  def string(data):
    data = data.encode() if isinstance(data, str) else data
    return b'T' + struct.pack('<I', len(data)) + data

  def integer(value):
    return b'J' + struct.pack('<i', value)

  def reconstruct():
    return (
      b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n' + integer(0) + b'\x85'
      + string('b') + b'\x87R'
    )  # fmt: skip

  def dtype(code, order, flags=0):
    return (
      b'cnumpy\ndtype\n' + string(code) + integer(0) + integer(1) + b'\x87R('
      + integer(3) + string(order) + b'NNN' + 2 * integer(-1) + integer(flags) + b'tb'
    )  # fmt: skip

  def array(value):
    shape = b'(' + b''.join(map(integer, value.shape)) + b't'
    return (
      reconstruct() + b'(' + integer(1) + shape + dtype('f4', '<') + b'\x89'
      + string(value.tobytes()) + b'tb'
    )  # fmt: skip

  entries = b''.join(
    string(name) + b'](' + b''.join(map(array, pair)) + b'e'
    for name, pair in layers_by_name.items()
  )
  objects = b'](}(' + entries + b'ue'
  body = (
    b'\x80\x02' + reconstruct() + b'(' + integer(1) + b')' + dtype('O8', '|', 63) + b'\x89'
    + objects + b'tb.'
  )  # fmt: skip
  header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
  header += b' ' * (-(len(header) + 11) % 16) + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + body


def caffe_file(net, arrays, generation='new', *, double=False, plain=False, classifier='fc8'):
  """A .caffemodel by the protobuf library.

  Args:
    net: 'caffe' or 'caffenet'.
    arrays: as `random_arrays`.
    generation: 'new' (LayerParameter, shapes), 'v1' or 'v0' (num, channels, height, width).
    double: keep the values in `double_data`.
    plain: leave out layers without weights, and the name of the net.
    classifier: name of the last layer.
  """
  message = _caffe_messages()['NetParameter']()
  kinds = {'lrn': ('LRN', 15), 'pool': ('Pooling', 17), 'relu': ('ReLU', 18)}
  kinds |= {'conv': ('Convolution', 4), 'fc': ('InnerProduct', 14)}
  order = ['norm', 'pool'] if net == 'caffe' else ['pool', 'norm']
  names = ['data', 'conv1', 'relu1', *(f'{kind}1' for kind in order), 'conv2']
  names += ['relu2', *(f'{kind}2' for kind in order), *CAFFE_NAMES[2:5], 'pool5', *CAFFE_NAMES[5:]]
  if plain:
    names = CAFFE_NAMES
  else:
    message.name = {'caffe': 'AlexNet', 'caffenet': 'CaffeNet'}[net]
  by_name = dict(zip(CAFFE_NAMES, arrays, strict=True))
  for name in names:
    new, number = kinds.get(name.rstrip('0123456789').replace('norm', 'lrn'), ('Data', 5))
    if generation == 'new':
      layer = message.layer.add(type=new)
    elif generation == 'v1':
      layer = message.layers.add(type=number)
    else:
      layer = message.layers.add().layer
      layer.type = {'Pooling': 'pool', 'InnerProduct': 'innerproduct'}.get(new, new.lower())
    layer.name = classifier if name == 'fc8' else name
    for array in by_name.get(name, ()):
      blob = layer.blobs.add()
      getattr(blob, 'double_data' if double else 'data').extend(array.ravel().tolist())
      if generation == 'new':
        blob.shape.dim.extend(array.shape)
      else:
        sizes = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = sizes
  return message.SerializeToString()


def _caffe_messages():
  """Classes for the part of caffe.proto that weights are in."""
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  types = descriptor_pb2.FieldDescriptorProto
  text, integer = types.TYPE_STRING, types.TYPE_INT32
  shape = {'dim': (1, types.TYPE_INT64)}
  blob = {'num': (1, integer), 'channels': (2, integer), 'height': (3, integer)}
  blob |= {'width': (4, integer), 'data': (5, types.TYPE_FLOAT), 'shape': (7, 'BlobShape')}
  blob |= {'double_data': (8, types.TYPE_DOUBLE)}
  messages = {
    'BlobShape': shape,
    'BlobProto': blob,
    'V0LayerParameter': {'name': (1, text), 'type': (2, text), 'blobs': (50, 'BlobProto')},
    'V1LayerParameter': {
      **{'layer': (1, 'V0LayerParameter'), 'name': (4, text), 'type': (5, integer)},
      'blobs': (6, 'BlobProto'),
    },
    'LayerParameter': {'name': (1, text), 'type': (2, text), 'blobs': (7, 'BlobProto')},
    'NetParameter': {
      **{'name': (1, text), 'layers': (2, 'V1LayerParameter')},
      'layer': (100, 'LayerParameter'),
    },
  }
  repeated = ('dim', 'data', 'double_data', 'blobs', 'layers')
  file = descriptor_pb2.FileDescriptorProto(name='caffe_part.proto', package='caffe')
  for message, fields in messages.items():
    described = file.message_type.add(name=message)
    for name, (number, kind) in fields.items():
      many = name in repeated or (name, message) == ('layer', 'NetParameter')
      field = described.field.add(name=name, number=number)
      field.label = types.LABEL_REPEATED if many else types.LABEL_OPTIONAL
      if isinstance(kind, str):
        field.type, field.type_name = types.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = kind
        if many and kind != text:
          field.options.packed = True
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
