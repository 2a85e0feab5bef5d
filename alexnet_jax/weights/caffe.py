"""The layers in a `.caffemodel`, a protobuf NetParameter.

Of caffe.proto (BVLC/caffe src/caffe/proto) a dozen fields matter, in its three generations: `layer`
(100, LayerParameter), `layers` (2, V1LayerParameter), and `layers.layer` (1, V0LayerParameter).
They are read as fields that the protobuf library does not know, so that numbers stay bytes.
"""

from collections.abc import Iterator

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

# Field numbers of name, type and blobs in each generation.
_NEW, _V1, _V0 = (1, 2, 7), (4, 5, 6), (1, 2, 50)
_V1_TYPES = {15: 'lrn', 17: 'pool'}
_NETS = {'alexnet': 'caffe', 'caffenet': 'caffenet'}


def read(data: bytes) -> tuple[str | None, dict[str, np.ndarray]]:
  """The net, if its pools or name tell it, and arrays by '<layer>/kernel' and '<layer>/bias'.

  Raises:
    ValueError: damaged, or not a NetParameter.
  """
  net, kinds = None, []
  arrays: dict[str, np.ndarray] = {}
  for field, value in _fields(data):
    if field == 1:
      net = _NETS.get(_text(value).lower())
    if field not in (2, 100):
      continue
    inner = [old for number, old in _fields(value) if number == 1] if field == 2 else []
    numbers = _NEW if field == 100 else _V0 if inner else _V1
    name, kind, blobs = _layer(inner[0] if inner else value, numbers)
    kinds.append(kind)
    if blobs:
      # Classifiers that were trained anew have names such as fc8_flickr.
      name = 'fc8' if name.startswith('fc8') else name
      if f'{name}/kernel' in arrays:
        raise ValueError(f'it has two layers {name:.40} with weights')
      parts = ['kernel', 'bias', *map(str, range(2, len(blobs)))]
      arrays |= {f'{name}/{part}': blob for part, blob in zip(parts, blobs, strict=False)}
  # CaffeNet pools before it normalizes; bvlc_alexnet normalizes before it pools.
  order = [kind for kind in kinds if kind.startswith(('lrn', 'pool'))]
  if order:
    net = 'caffe' if order[0] == 'lrn' else 'caffenet'
  return net, arrays


def _layer(message: bytes | int, numbers: tuple[int, int, int]) -> tuple[str, str, list]:
  """Name, lower-case type ('' where it does not matter here) and blobs."""
  name, kind, blobs = '', '', []
  for field, value in _fields(message):
    if field == numbers[0]:
      name = _text(value)
    elif field == numbers[1]:
      kind = _V1_TYPES.get(value, '') if isinstance(value, int) else _text(value).lower()
    elif field == numbers[2]:
      blobs.append(_blob(value))
  return name, kind, blobs


def _blob(message: bytes | int) -> np.ndarray:
  """A BlobProto: a `shape`, or num, channels, height and width of before Caffe 1.0."""
  legacy, shape, floats, doubles = [1, 1, 1, 1], None, [], []
  for field, value in _fields(message):
    match field, value:
      case 1 | 2 | 3 | 4, int():
        legacy[field - 1] = value
      case 5, bytes():
        floats.append(value)
      case 5, int():  # not packed
        floats.append(value.to_bytes(4, 'little'))
      case 7, bytes():
        shape = _dims(value)
      case 8, bytes():
        doubles.append(value)
  if shape is None:
    # A matrix was (1, 1, outputs, inputs), a bias (1, 1, 1, outputs).
    while len(legacy) > 1 and legacy[0] == 1:
      del legacy[0]
    shape = legacy
  values = np.frombuffer(b''.join(doubles or floats), '<f8' if doubles else '<f4')
  return values.reshape(shape)


def _dims(message: bytes) -> list[int]:
  dims = []
  for field, value in _fields(message):
    match field, value:
      case 1, int():
        dims.append(value)
      case 1, bytes():  # packed varints: seven bits a byte, the top bit for all but the last
        dim, shift = 0, 0
        for byte in value[:1000]:
          dim |= (byte & 127) << shift
          shift += 7
          if byte < 128:
            dims.append(dim)
            dim, shift = 0, 0
  return dims


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
