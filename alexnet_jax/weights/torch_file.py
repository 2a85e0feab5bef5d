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

import ml_dtypes
import numpy as np

from alexnet_jax.weights import pickles

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {
  **{'Half': '<f2', 'BFloat16': ml_dtypes.bfloat16, 'Float': '<f4', 'Double': '<f8'},
  **{'Byte': 'u1', 'Char': 'i1', 'Short': '<i2', 'Int': '<i4', 'Long': '<i8', 'Bool': '?'},
}


def read_zip(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
  """The state dict in a zip archive.

  Raises:
    ValueError: damaged, or no tensors by name.
  """
  name = next(name for name in files if name.endswith('data.pkl'))
  root = name.removesuffix('data.pkl')
  if files.get(f'{root}byteorder', b'little') != b'little':
    raise ValueError('its values are big-endian: save it again on an ordinary machine')

  def storage(identity):
    key, dtype, count = _parse_storage(identity)
    values = np.frombuffer(files.get(f'{root}data/{key}', b''), dtype)
    if len(values) != count:
      raise ValueError(f'storage {key:.40} is missing or of another size')
    return values

  return _state_dict(pickles.read(io.BytesIO(files[name]), _KNOWN, storage))


def read_legacy(data: bytes) -> dict[str, np.ndarray]:
  """The state dict in a file of before torch 1.6.

  Raises:
    ValueError: damaged, or no tensors by name.
  """
  file = io.BytesIO(data)
  if pickles.read(file) != _MAGIC or pickles.read(file) != _PROTOCOL:
    raise ValueError('it is a pickle, but not one of torch.save')
  system = pickles.read(file)
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise ValueError('its values are big-endian: save it again on an ordinary machine')
  storages: dict[str, np.ndarray] = {}
  left = len(data)

  def storage(identity):
    nonlocal left
    key, dtype, count = _parse_storage(identity)
    if key not in storages:
      left -= count * dtype.itemsize
      if left < 0:
        raise ValueError(f'storage {key:.40} is larger than the file')
      storages[key] = np.empty(count, dtype)  # its values follow the pickles
    return storages[key]

  value, keys = pickles.read(file, _KNOWN, storage), pickles.read(file)
  listed = isinstance(keys, list) and all(type(key) is str for key in keys)
  if not listed or sorted(keys) != sorted(storages):
    raise ValueError('its list of storages is damaged')
  for key in keys:
    header, values = file.read(8), storages[key].view(np.uint8)
    if header != struct.pack('<q', len(storages[key])) or file.readinto(values) != len(values):
      raise ValueError(f'storage {key:.40} is missing or of another size')
  if file.read(1):
    raise ValueError(f'it should have {file.tell() - 1:,} bytes, but has {len(data):,}')
  return _state_dict(value)


def _parse_storage(identity: Any) -> tuple[str, np.dtype, int]:
  """Key, type and number of values."""
  match identity:
    case ('storage', np.dtype() as dtype, str(key), str(), int(count), *rest) if (
      count >= 0 and rest in ([], [None])
    ):
      return key, dtype, count
  raise ValueError('its pickle has a storage without a proper name')


def _state_dict(value: Any) -> dict[str, np.ndarray]:
  """The state dict, which may be one entry of a training checkpoint."""
  if not isinstance(value, dict):
    raise ValueError('it holds no state dict; save model.state_dict()')
  for name in ('state_dict', 'model_state_dict', 'model', 'net'):
    if isinstance(value.get(name), dict):
      value = value[name]
  if not all(isinstance(key, str) and isinstance(a, np.ndarray) for key, a in value.items()):
    raise ValueError('its dict holds other things than arrays by name; save model.state_dict()')
  return value


def rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_):
  """A strided view that lies inside its storage, as `np.ndarray` checks, and repeats no value."""
  if math.prod(shape) > storage.size:
    raise ValueError(f'a tensor of {math.prod(shape):,} values has a storage of {storage.size:,}')
  size = storage.itemsize
  # Bytes, because NumPy takes no buffer of bfloat16.
  buffer = storage.view(np.uint8)
  return np.ndarray(shape, storage.dtype, buffer, offset * size, [step * size for step in stride])


_KNOWN = {
  'torch._utils._rebuild_tensor': rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': rebuild_tensor,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
  **{
    f'{module}.{name}Storage': np.dtype(dtype)
    for module in ('torch', 'torch.cuda')
    for name, dtype in _STORAGES.items()
  },
}


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
