"""Pickles of arrays, read without running what is in them.

A pickle is a program whose REDUCE calls any function of any module. `ArrayUnpickler` knows the few
operations that arrays need, and `find_class` the few names: a dict, a torch tensor or parameter, a
NumPy array and its type, and how Python 3 spells bytes in old protocols. It extends the unpickler
that is written in Python, because the one in C allocates what a memo index in the file asks for:
nine bytes take 300 MB.
"""

import dataclasses
import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from alexnet_jax.weights import lazy_array
from alexnet_jax.weights.lazy_array import LazyArray

_ADVICE = 'only arrays are read, such as torch.save(model.state_dict(), ...) writes'
_DAMAGED = (
  *(AssertionError, AttributeError, EOFError, IndexError, KeyError, OverflowError, TypeError),
  *(pickle.UnpicklingError, struct.error),
)

MAX_OPERATIONS = 1_000_000  # torchvision's file has 500; a training checkpoint some thousands
MAX_AXES = 32

_OPERATIONS = (
  *('PROTO', 'FRAME', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE'),
  *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE'),
  *('BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
  *('EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'),
  *('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD', 'REDUCE', 'GLOBAL', 'STACK_GLOBAL'),
  *('BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'BINPERSID'),
)
_STORAGES = {
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'ByteStorage': np.dtype('u1'),
  'CharStorage': np.dtype('i1'),
  'ShortStorage': np.dtype('<i2'),
  'IntStorage': np.dtype('<i4'),
  'LongStorage': np.dtype('<i8'),
  'BoolStorage': np.dtype('?'),
}


@dataclasses.dataclass
class Storage:
  """The values behind torch tensors; `data` is found outside the pickle."""

  key: str
  dtype: np.dtype
  count: int
  data: Callable[[], bytes] | None = None


def read(file: BinaryIO, storage: Callable[[tuple], Storage] | None = None) -> Any:
  """Reads one pickle and leaves the file behind it.

  Args:
    file: at the start of a pickle; in memory, so that no size in it can ask for more than there is.
    storage: makes a torch storage of a persistent id.

  Returns:
    dict, list, tuple, str, bytes, int, float, bool, None, `Storage`, and arrays as `LazyArray`;
    that of a NumPy array of objects reads the list of them.

  Raises:
    ValueError: damaged, or it wants to make or call something else.
  """
  unpickler = ArrayUnpickler(file, encoding='latin1')  # in which Python 2's bytes keep their values
  if storage:
    unpickler.persistent_load = storage
  try:
    return unpickler.load()
  except _DAMAGED as error:
    raise ValueError(f'its pickle is damaged ({type(error).__name__})') from None


class _Dispatch(dict):
  """Methods of an unpickler by the code of their operation; counts what it hands out."""

  count = 0

  def __getitem__(self, code: int):
    self.count += 1
    if self.count > MAX_OPERATIONS:
      raise ValueError(f'its pickle has more than {MAX_OPERATIONS:,} operations')
    if code not in self and chr(code) in pickletools.code2op:
      name = pickletools.code2op[chr(code)].name
      raise ValueError(f'its pickle wants {name}, which arrays do not need: {_ADVICE}')
    return super().__getitem__(code)


class ArrayUnpickler(pickle._Unpickler):
  """Makes arrays, containers, numbers and texts, and calls nothing but functions of this module."""

  def __init__(self, file: BinaryIO, **arguments):
    super().__init__(file, **arguments)
    self.dispatch = _Dispatch(_METHODS)

  def find_class(self, module: str, name: str) -> Any:
    if f'{module}.{name}' not in _KNOWN:
      raise ValueError(f'its pickle wants to call {f"{module}.{name}"!r:.80}: {_ADVICE}')
    return _KNOWN[f'{module}.{name}']

  def load_setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    _update(self.stack[-1], [(key, value)])

  def load_setitems(self) -> None:
    items = self.pop_mark()
    _update(self.stack[-1], zip(items[::2], items[1::2], strict=True))

  def load_build(self) -> None:
    state = self.stack.pop()
    match self.stack[-1], state:
      case _Dtype() as dtype, (int(), str(order), *_):
        dtype.order = order
      case LazyArray() as array, (int(), tuple(shape), _Dtype() as dtype, fortran, data):
        _fill(array, shape, dtype, bool(fortran), data)
      case dict(), _:
        pass  # attributes of an OrderedDict: torch's version numbers
      case _:
        raise TypeError


_METHODS = {
  code: getattr(ArrayUnpickler, method.__name__)
  for code, method in pickle._Unpickler.dispatch.items()
  if pickletools.code2op[chr(code)].name in _OPERATIONS
}


def _update(target: dict, pairs) -> None:
  """Only plain keys: to hash a tuple takes recursion."""
  for key, value in pairs:
    if type(target) is not dict or type(key) not in (str, int):
      raise TypeError
    target[key] = value


# What the names in a pickle stand for.


@dataclasses.dataclass
class _Dtype:
  """A NumPy type: REDUCE gives its code, BUILD its byte order."""

  code: str
  align: bool = False
  copy: bool = False
  order: str = '='


def _ordered_dict(pairs=()) -> dict:
  result = {}
  _update(result, pairs)  # a list of [key, value], as Python 2 pickled it
  return result


def _reconstruct(*_) -> LazyArray:
  """An empty NumPy array, which BUILD fills."""
  return LazyArray((), lambda: np.zeros((), np.float32))


def _fill(array: LazyArray, shape: tuple, dtype: _Dtype, fortran: bool, data) -> None:
  match dtype.code, data:
    case 'O' | 'O4' | 'O8', list(items):
      array.read = lambda: items  # no parameter has its shape, (), so that no net takes it for one
    case 'f2' | 'f4' | 'f8', bytes() | str():
      kind = np.dtype(('>' if dtype.order == '>' else '<') + dtype.code)
      data = data.encode('latin1') if isinstance(data, str) else data  # str: bytes of Python 2
      found = lazy_array.from_bytes('an array', data, kind, shape, 'F' if fortran else 'C')
      array.shape, array.read = found.shape, found.read
    case _:
      raise ValueError(f'it holds an array of type {dtype.code!r:.20}, not of floats')


def _encode(text: str, encoding: str) -> bytes:
  if encoding != 'latin1':
    raise TypeError
  return text.encode('latin1')


def _rebuild_parameter(tensor: LazyArray, *_) -> LazyArray:
  return tensor


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *_) -> LazyArray:
  """A strided view that lies inside its storage and repeats no value."""
  if not (isinstance(storage, Storage) and type(shape) is type(stride) is tuple):
    raise TypeError
  numbers = (*shape, *stride, offset)
  proper = len(shape) == len(stride) <= MAX_AXES
  if not proper or not all(type(n) is int and n >= 0 for n in numbers):
    raise ValueError('its pickle has a tensor without a proper shape')
  last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
  if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
    raise ValueError(
      f'a tensor of shape {lazy_array.shape_text(shape)} is larger than its storage of'
      f' {storage.count} values'
    )

  def view() -> np.ndarray:
    values = np.frombuffer(storage.data(), storage.dtype)
    if len(values) != storage.count:
      raise ValueError(f'storage {storage.key} has {len(values)} of {storage.count} values')
    # Along an axis of one value the step is never taken, and may be any number.
    steps = [
      step * storage.dtype.itemsize if n > 1 else 0 for n, step in zip(shape, stride, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)

  return LazyArray(shape, view)


_KNOWN = {
  'collections.OrderedDict': _ordered_dict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'numpy.core.multiarray._reconstruct': _reconstruct,
  'numpy._core.multiarray._reconstruct': _reconstruct,
  'numpy.ndarray': 'ndarray',  # for _reconstruct, which does not look at it
  'numpy.dtype': _Dtype,
  '_codecs.encode': _encode,
  **{f'{module}.{name}': dtype for module in ('torch', 'torch.cuda')
     for name, dtype in _STORAGES.items()},
}  # fmt: skip


def torch_storage(identity: tuple) -> Storage:
  """Parses the persistent id of a torch storage; the caller sets `data`."""
  match identity:
    case ('storage', np.dtype() as dtype, str(key), str(), int(count), *rest) if (
      count >= 0 and rest in ([], [None])
    ):
      return Storage(key, dtype, count)
  raise ValueError('its pickle has a storage without a proper name')
