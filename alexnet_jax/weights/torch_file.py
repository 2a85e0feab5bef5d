"""Files of `torch.save`, read and written without torch.

Two forms (torch/serialization.py): since torch 1.6 a zip archive (stored, not compressed) of
`<name>/data.pkl` and one `<name>/data/<key>` per storage; before, a row of pickles (magic number,
protocol, system, object, storage keys) and then each storage as an int64 count and its values.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax.weights import pickles

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_zip(files: Mapping[str, bytes]) -> Any:
  """The object in a zip archive, tensors as `LazyArray`.

  Raises:
    ValueError: damaged, or not only tensors in dicts.
  """
  name = next(name for name in files if name.endswith('data.pkl'))
  root = name.removesuffix('data.pkl')
  if files.get(f'{root}byteorder', b'little') != b'little':
    raise ValueError('its values are big-endian: save it again on an ordinary machine')

  def storage(identity):
    found = pickles.torch_storage(identity)
    member = f'{root}data/{found.key}'
    if member not in files:
      raise ValueError(f'the archive lacks {member:.80}')
    found.data = lambda: files[member]
    return found

  return pickles.read(io.BytesIO(files[name]), storage)


def read_legacy(data: bytes) -> Any:
  """The object in a file of before torch 1.6, tensors as `LazyArray`.

  Raises:
    ValueError: damaged, or not only tensors in dicts, or not of torch.
  """
  file, storages = io.BytesIO(data), {}
  if pickles.read(file) != _MAGIC or pickles.read(file) != _PROTOCOL:
    raise ValueError('it is a pickle, but not one of torch.save')
  system = pickles.read(file)
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise ValueError('its values are big-endian: save it again on an ordinary machine')

  def storage(identity):
    found = pickles.torch_storage(identity)
    return storages.setdefault(found.key, found)

  value, keys = pickles.read(file, storage), pickles.read(file)
  listed = isinstance(keys, list) and all(type(key) is str for key in keys)
  if not listed or sorted(keys) != sorted(storages):
    raise ValueError('its list of storages is damaged')
  place = file.tell()
  for key in keys:
    found, header = storages[key], data[place : place + 8]
    size = found.count * found.dtype.itemsize
    if len(header) < 8 or struct.unpack('<q', header)[0] != found.count:
      raise ValueError(f'storage {key:.40} is missing or of another size')
    part = memoryview(data)[place + 8 : place + 8 + size]
    found.data = lambda part=part: part
    place += 8 + size
  if place != len(data):
    raise ValueError(f'it should have {place:,} bytes, but has {len(data):,}')
  return value


def write_zip(tensors: dict[str, np.ndarray]) -> bytes:
  """A state dict that `torch.load(weights_only=True)` opens.

  Args:
    tensors: float32 arrays by name.
  """
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_STORED) as file:
    file.writestr('archive/data.pkl', _state_dict_pickle(tensors))
    file.writestr('archive/byteorder', 'little')
    for key, array in enumerate(tensors.values()):
      file.writestr(f'archive/data/{key}', np.asarray(array, '<f4').tobytes())
    file.writestr('archive/version', '3\n')
  return buffer.getvalue()


def _state_dict_pickle(tensors: dict[str, np.ndarray]) -> bytes:
  """The program that rebuilds an OrderedDict of tensors (protocol 2), as torch.save writes it."""
  ordered_dict = b'ccollections\nOrderedDict\n)R'
  parts = [b'\x80\x02', ordered_dict, b'(']
  for key, (name, array) in enumerate(tensors.items()):
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    parts += [
      _text(name),
      b'ctorch._utils\n_rebuild_tensor_v2\n((',
      *(_text('storage'), b'ctorch\nFloatStorage\n', _text(str(key)), _text('cpu')),
      *(_integer(array.size), b'tQ', _integer(0)),
      *(b'(', *map(_integer, array.shape), b't'),
      *(b'(', *map(_integer, strides), b't'),
      *(b'\x89', ordered_dict, b'tR'),
    ]
  return b''.join([*parts, b'u.'])


def _text(value: str) -> bytes:
  data = value.encode()
  return b'X' + struct.pack('<I', len(data)) + data


def _integer(value: int) -> bytes:
  return b'J' + struct.pack('<i', value)
