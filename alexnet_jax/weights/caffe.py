"""The layers in a `.caffemodel`, out of the protobuf wire format.

Of caffe.proto (BVLC/caffe src/caffe/proto) a dozen fields matter, in its three generations: `layer`
(100, LayerParameter), `layers` (2, V1LayerParameter), and `layers.layer` (1, V0LayerParameter).  A
reader of the wire format needs no generated code, and leaves the numbers where they lie.
Source: protobuf.dev/programming-guides/encoding.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from alexnet_jax.weights import lazy_array
from alexnet_jax.weights.lazy_array import LazyArray

MAX_LAYERS = 1000
# Field numbers of name, type and blobs in each generation.
_NEW, _V1, _V0 = (1, 2, 7), (4, 5, 6), (1, 2, 50)
_V1_TYPES = {15: 'lrn', 17: 'pool'}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of a net.

  Attributes:
    name: such as 'conv1'.
    type: lower-case, such as 'lrn' or 'pooling'; '' where it does not matter here.
    blobs: kernel and bias, rows being outputs; none for layers without weights.
  """

  name: str
  type: str
  blobs: tuple[LazyArray, ...]


def read(data: bytes) -> tuple[str, list[Layer]]:
  """The name of the net and its layers from input to output.

  Raises:
    ValueError: damaged, or not a NetParameter.
  """
  name, layers = '', []
  for field, value in _fields(memoryview(data)):
    match field, value:
      case 1, memoryview():
        name = _text(value)
      case 2, memoryview():
        inner = [old for number, old in _fields(value) if number == 1]
        layers.append(_layer(_bytes(inner[0]), _V0) if inner else _layer(value, _V1))
      case 100, memoryview():
        layers.append(_layer(value, _NEW))
    if len(layers) > MAX_LAYERS:
      raise ValueError(f'it has more than {MAX_LAYERS} layers')
  return name, layers


def _layer(message: memoryview, numbers: tuple[int, int, int]) -> Layer:
  name, kind = '', ''
  blobs: list[LazyArray] = []
  for field, value in _fields(message):
    if field == numbers[0]:
      name = _text(_bytes(value))
    elif field == numbers[1]:
      kind = _V1_TYPES.get(value, '') if isinstance(value, int) else _text(value).lower()
    elif field == numbers[2]:
      blobs.append(_blob(_bytes(value), f'blob {len(blobs)} of layer {name:.40}'))
  return Layer(name, kind, tuple(blobs))


def _blob(message: memoryview, name: str) -> LazyArray:
  """A BlobProto: a `shape`, or num, channels, height and width of before Caffe 1.0."""
  legacy, shape, floats, doubles = [1, 1, 1, 1], None, [], []
  for field, value in _fields(message):
    match field, value:
      case 1 | 2 | 3 | 4, int():
        legacy[field - 1] = value
      case 5, memoryview():
        floats.append(value)
      case 7, memoryview():
        shape = _dims(value)
      case 8, memoryview():
        doubles.append(value)
  if shape is None:
    # A matrix was (1, 1, outputs, inputs), a bias (1, 1, 1, outputs).
    while len(legacy) > 1 and legacy[0] == 1:
      del legacy[0]
    shape = tuple(legacy)
  parts, dtype = (doubles, np.dtype('<f8')) if doubles else (floats, np.dtype('<f4'))
  data = parts[0] if len(parts) == 1 else b''.join(parts)
  return lazy_array.from_bytes(name, data, dtype, shape)


def _dims(message: memoryview) -> tuple[int, ...]:
  dims = []
  for field, value in _fields(message):
    match field, value:
      case 1, int():
        dims.append(value)
      case 1, memoryview():  # packed
        place = 0
        while place < len(value):
          dim, place = _varint(value, place)
          dims.append(dim)
    if len(dims) > 32:
      raise ValueError('a blob has more than 32 axes')
  return tuple(dims)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """Yields the fields of a message: (number, int of a varint or the bytes of all else)."""
  place = 0
  while place < len(message):
    key, place = _varint(message, place)
    match key & 7:
      case 0:  # varint
        value, place = _varint(message, place)
        yield key >> 3, value
        continue
      case 1:
        size = 8
      case 2:  # bytes, text, message or packed numbers
        size, place = _varint(message, place)
      case 5:
        size = 4
      case wire:
        raise ValueError(f'it has a field of wire type {wire}, which Caffe does not use')
    if size > len(message) - place:
      raise ValueError(f'it ends {size - len(message) + place:,} bytes too early')
    yield key >> 3, message[place : place + size]
    place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
  value = 0
  for count, byte in enumerate(message[place : place + 10]):
    value |= (byte & 127) << 7 * count
    if byte < 128:
      return value, place + count + 1
  raise ValueError('it ends within a number, or a number has no end')


def _bytes(value: int | memoryview) -> memoryview:
  if isinstance(value, int):
    raise ValueError('a field has a number where a message should be')
  return value


def _text(value: memoryview) -> str:
  return bytes(value[:200]).decode('utf-8', 'replace')
