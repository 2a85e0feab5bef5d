"""Pickles of arrays, read by a machine that can call nothing.

A pickle is a program for a stack machine whose REDUCE calls any function of any module.  Here the
program is decoded by `pickletools.genops`, which runs nothing, and carried out by a machine whose
REDUCE knows five names: a dict, a torch tensor or parameter, a NumPy array and its type, and how
Python 3 spells bytes in old protocols.  Any other name, and any operation that arrays do not need,
ends the reading.  `pickle.Unpickler` with a `find_class` of its own would admit no other names
either, but allocates whatever size a memo index in the file asks for.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from alexnet_jax.weights import blob
from alexnet_jax.weights.blob import Blob

_ADVICE = 'only arrays are read, such as torch.save(model.state_dict(), ...) writes'

MAX_OPERATIONS = 1_000_000  # torchvision's file has 500; a training checkpoint some thousands

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_MAKERS = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_ARGUMENTS = (
  *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE'),
  *('BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
)
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
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


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that a pickle mentions, as 'module name'; it is never looked up."""

  name: str


@dataclasses.dataclass
class Storage:
  """The values behind torch tensors; `data` is found outside the pickle."""

  key: str
  dtype: np.dtype
  count: int
  data: Callable[[], bytes] | None = None


@dataclasses.dataclass
class _Dtype:
  code: str
  order: str = '='


@dataclasses.dataclass
class _Array:
  """A NumPy array: REDUCE makes it empty, BUILD fills it."""

  shape: tuple = ()
  dtype: _Dtype | None = None
  fortran: bool = False
  data: Any = b''


def read(file: BinaryIO, storage: Callable[[tuple], Storage] | None = None) -> Any:
  """Carries out one pickle and leaves the file behind it.

  Args:
    file: at the start of a pickle; in memory, so that no size in it can ask for more than there is.
    storage: makes a torch storage of a persistent id.

  Returns:
    dict, list, tuple, str, bytes, int, float, bool, None, `Global`, `Storage`, and arrays as
    `Blob` (a NumPy array of objects, as its list).

  Raises:
    ValueError: damaged, or it wants to make or call something else.
  """
  try:
    return _finished(_run(file, storage))
  except (IndexError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'its pickle is damaged ({type(error).__name__})') from None


def _run(file, storage):
  stack, marked, memo = [], [], {}

  def above_mark():
    nonlocal stack
    items, stack = stack, marked.pop()
    return items

  for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
    if count > MAX_OPERATIONS:
      raise ValueError(f'its pickle has more than {MAX_OPERATIONS:,} operations')
    match opcode.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        return stack.pop()
      case name if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
      case name if name in _MAKERS:
        stack.append(_MAKERS[name]())
      case name if name in _ARGUMENTS:
        stack.append(argument)
      case 'MARK':
        marked.append(stack)
        stack = []
      case 'TUPLE':
        items = above_mark()
        stack.append(tuple(items))
      case name if name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
      case 'APPEND':
        item = stack.pop()
        _extend(stack[-1], [item])
      case 'APPENDS':
        items = above_mark()
        _extend(stack[-1], items)
      case 'SETITEM':
        value, key = stack.pop(), stack.pop()
        _update(stack[-1], [key, value])
      case 'SETITEMS':
        items = above_mark()
        _update(stack[-1], items)
      case 'BINPUT' | 'LONG_BINPUT':
        memo[argument] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[argument])
      case 'GLOBAL':
        stack.append(Global(argument))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(Global(f'{module} {name}' if type(module) is type(name) is str else '?'))
      case 'BINPERSID':
        stack.append(storage(stack.pop()))
      case 'REDUCE':
        arguments, function = stack.pop(), stack.pop()
        stack.append(_reduced(function, arguments))
      case 'BUILD':
        state = stack.pop()
        _build(stack[-1], state)
      case name:
        raise ValueError(f'its pickle wants {name}, which arrays do not need: {_ADVICE}')
  raise ValueError('its pickle has no end')


def _extend(target, items) -> None:
  if type(target) is not list:
    raise TypeError
  target.extend(map(_finished, items))


def _update(target, items) -> None:
  """Sets key, value, key, value, ...; only plain keys, for to hash a tuple takes recursion."""
  if type(target) is not dict or not all(type(key) in (str, int) for key in items[::2]):
    raise TypeError
  target.update(zip(items[::2], map(_finished, items[1::2]), strict=True))


def _reduced(function, arguments):
  """What the five known functions return."""
  match function.name, arguments:
    case 'collections OrderedDict', ():
      return {}
    case 'collections OrderedDict', (list(pairs),):  # as Python 2 pickled it
      result = {}
      _update(result, [item for key, value in pairs for item in (key, value)])
      return result
    case (
      'torch._utils _rebuild_tensor_v2' | 'torch._utils _rebuild_tensor',
      (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_),
    ):
      return _tensor(storage, offset, shape, stride)
    case 'torch._utils _rebuild_parameter', (Blob() as tensor, *_):
      return tensor
    case (
      'numpy.core.multiarray _reconstruct' | 'numpy._core.multiarray _reconstruct',
      (Global('numpy ndarray'), *_),
    ):
      return _Array()
    case 'numpy dtype', (str(code), *_):
      return _Dtype(code)
    case '_codecs encode', (str(text), 'latin1'):
      return text.encode('latin1')
  raise ValueError(f'its pickle wants to call {function.name!r:.80}: {_ADVICE}')


def _build(target, state) -> None:
  match target, state:
    case _Dtype(), (int(), str(order), *_):
      target.order = order
    case _Array(), (int(), tuple(shape), _Dtype() as dtype, bool() | int() as fortran, data):
      target.shape, target.dtype = shape, dtype
      target.fortran, target.data = bool(fortran), data
    case dict(), _:
      pass  # attributes of an OrderedDict: torch's version numbers
    case _:
      raise TypeError


def _finished(value):
  """A NumPy array as a blob, or as its list if it holds objects; other values as they are."""
  if not isinstance(value, _Array):
    return value
  match value.dtype.code, value.data:
    case 'O' | 'O4' | 'O8', list(items):
      return items
    case 'f2' | 'f4' | 'f8', bytes() | str() as data:  # str: bytes of Python 2
      dtype = np.dtype(('>' if value.dtype.order == '>' else '<') + value.dtype.code)
      data = data.encode('latin1') if isinstance(data, str) else data
      return blob.from_bytes('an array', data, dtype, value.shape, 'F' if value.fortran else 'C')
  raise ValueError(f'it holds an array of type {value.dtype.code!r:.20}, not of floats')


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple) -> Blob:
  """A strided view that lies inside its storage and repeats no value."""
  numbers = (*shape, *stride, offset)
  if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
    raise ValueError('its pickle has a tensor without a proper shape')
  last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
  if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
    raise ValueError(
      f'a tensor of shape {blob.show(shape)} is larger than its storage of {storage.count} values'
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

  return Blob(shape, view)


def torch_storage(identity: tuple) -> Storage:
  """What a persistent id of torch speaks of; `data` is for the caller to fill in."""
  match identity:
    case ('storage', Global(name), str(key), str(), int(count), *rest) if rest in ([], [None]):
      module, _, kind = name.partition(' ')
      if module in ('torch', 'torch.cuda') and kind in _STORAGES and count >= 0:
        return Storage(key, _STORAGES[kind], count)
      raise ValueError(f'its pickle wants a storage of type {name!r:.80}')
  raise ValueError('its pickle has a storage without a proper name')
