"""The arrays in a `.caffemodel`, a protobuf NetParameter.

Of caffe.proto (BVLC/caffe src/caffe/proto) a dozen fields matter, in two generations: `layer` (100,
LayerParameter) and `layers` (2, V1LayerParameter).  They are read as fields that the protobuf
library does not know, so that numbers stay bytes.
"""

from collections.abc import Iterator

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

_LAYER_FIELDS = {100: (1, 2, 7), 2: (4, 5, 6)}  # name, type and blobs in each generation
_V1_TYPES = {15: 'lrn', 17: 'pool'}
_NETS = {'alexnet': 'caffe', 'caffenet': 'caffenet'}


def read(data: bytes) -> tuple[str | None, dict[str, np.ndarray]]:
  """The net, if its pools or name tell it, and arrays by '<layer>/kernel' and '<layer>/bias'.

  Raises:
    ValueError: damaged, or not a NetParameter.
  """
  net, types = None, []
  arrays: dict[str, np.ndarray] = {}
  for field, value in _fields(data):
    if field == 1:
      net = _NETS.get(_text(value).lower())
    if field not in _LAYER_FIELDS:
      continue
    name, kind, blobs = _layer(value, *_LAYER_FIELDS[field])
    if kind.startswith(('lrn', 'pool')):
      types.append(kind)
    parts = ['kernel', 'bias', *map(str, range(2, len(blobs)))]
    for part, blob in zip(parts, blobs, strict=False):
      if f'{name}/{part}' in arrays:
        raise ValueError(f'it has two layers {name:.40} with weights')
      arrays[f'{name}/{part}'] = blob
  if types:  # CaffeNet pools before it normalizes; bvlc_alexnet normalizes before it pools
    net = 'caffe' if types[0] == 'lrn' else 'caffenet'
  return net, arrays


def _layer(
  message: bytes | int, name_field: int, type_field: int, blobs_field: int
) -> tuple[str, str, list[np.ndarray]]:
  """Name, lower-case type ('' where it does not matter here) and blobs."""
  name, kind, blobs = '', '', []
  for field, value in _fields(message):
    if field == name_field:
      name = _text(value)
    elif field == type_field:
      kind = _V1_TYPES.get(value, '') if isinstance(value, int) else _text(value).lower()
    elif field == blobs_field:
      blobs.append(_blob(value))
  # Retrained classifiers have names such as fc8_flickr.
  return 'fc8' if name.startswith('fc8') else name, kind, blobs


def _blob(message: bytes | int) -> np.ndarray:
  """A BlobProto: a `shape`, or num, channels, height and width of before Caffe 1.0."""
  legacy, shape, floats = [1, 1, 1, 1], None, []
  for field, value in _fields(message):
    match field, value:
      case 1 | 2 | 3 | 4, int():
        legacy[field - 1] = value
      case 5, bytes():
        floats.append(value)
      case 7, bytes():
        shape = [size for field, dims in _fields(value) if field == 1 for size in _numbers(dims)]
  if shape is None:
    # A matrix was (1, 1, outputs, inputs), a bias (1, 1, 1, outputs).
    while len(legacy) > 1 and legacy[0] == 1:
      del legacy[0]
    shape = legacy
  return np.frombuffer(b''.join(floats), '<f4').reshape(shape)


def _numbers(packed: bytes | int) -> Iterator[int]:
  """Yields numbers of seven bits a byte, each until a byte below 128."""
  number, shift = 0, 0
  for byte in packed[:1000] if isinstance(packed, bytes) else b'':
    number |= (byte & 127) << shift
    shift += 7
    if byte < 128:
      yield number
      number, shift = 0, 0


def _fields(message: bytes | int) -> Iterator[tuple[int, bytes | int]]:
  """Yields the fields of a message: (number, int or the bytes of all that is longer)."""
  try:
    if isinstance(message, int):
      raise DecodeError('a number where a message should be')
    for field in UnknownFieldSet(Empty.FromString(message)):
      if isinstance(field.data, (bytes, int)):  # else a group, which Caffe does not use
        yield field.field_number, field.data
  except DecodeError as error:
    raise ValueError(f'its protobuf message is damaged ({error})') from None


def _text(value: bytes | int) -> str:
  return '' if isinstance(value, int) else value[:200].decode('utf-8', 'replace')
