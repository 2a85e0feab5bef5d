"""Pickles of arrays, read without running what is in them.

A pickle is a program whose REDUCE calls any function of any module.  Here it reaches only the names
that its reader gives, by only the operations that arrays need.  The unpickler is the one written in
Python, because the one in C allocates what a memo index in the file asks for: nine bytes take
300 MB.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

ADVICE = 'only arrays are read, such as torch.save(model.state_dict(), ...) writes'
_OPERATIONS = (
  *('PROTO', 'FRAME', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE'),
  *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE'),
  *('BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
  *('EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'),
  *('APPEND', 'APPENDS', 'REDUCE', 'GLOBAL', 'STACK_GLOBAL'),
  *('BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'BINPERSID'),
)


def read(
  file: BinaryIO,
  known: Mapping[str, Any] | None = None,
  persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
  """Reads one pickle and leaves the file behind it.

  Args:
    file: at the start of a pickle; in memory, so that no size in it can ask for more than there is.
    known: what 'module.name' stands for, besides an OrderedDict and old protocols' bytes; BUILD
      calls the method `build` of what these make.
    persistent_load: makes the object of a persistent id.

  Raises:
    ValueError: damaged, or it wants to make or call something else.
  """
  try:
    return _Unpickler(file, _KNOWN | dict(known or {}), persistent_load).load()
  except ValueError:
    raise
  except Exception as error:  # a damaged program can fail in any way
    raise ValueError(f'its pickle is damaged ({type(error).__name__}), or {ADVICE}') from None


class _Unpickler(pickle._Unpickler):
  stack: list[Any]
  pop_mark: Callable[[], list[Any]]
  dispatch: ClassVar[dict[int, Any]] = {
    ord(operation.code): pickle._Unpickler.dispatch[ord(operation.code)]
    for operation in pickletools.opcodes
    if operation.name in _OPERATIONS
  }

  def __init__(self, file, known, load_storage):
    super().__init__(file, encoding='latin1')  # in which Python 2's bytes keep their values
    self.known, self.load_storage = known, load_storage

  def persistent_load(self, pid: Any) -> Any:
    return self.load_storage(pid)

  def find_class(self, module: str, name: str) -> Any:
    if f'{module}.{name}' not in self.known:
      raise ValueError(f'its pickle wants to call {f"{module}.{name}"!r:.80}: {ADVICE}')
    return self.known[f'{module}.{name}']

  def load_setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    _update(self.stack[-1], [(key, value)])

  def load_setitems(self) -> None:
    items = self.pop_mark()
    _update(self.stack[-1], zip(items[::2], items[1::2], strict=True))

  def load_build(self) -> None:
    state = self.stack.pop()
    if type(self.stack[-1]) is not dict:  # attributes of an OrderedDict: torch's version numbers
      self.stack[-1].build(*state)

  dispatch |= {
    pickle.SETITEM[0]: load_setitem,
    pickle.SETITEMS[0]: load_setitems,
    pickle.BUILD[0]: load_build,
  }


def _update(target: dict, pairs) -> None:
  """Only plain keys: to hash a tuple takes recursion."""
  for key, value in pairs:
    if type(target) is not dict or type(key) not in (str, int):
      raise TypeError
    target[key] = value


def _ordered_dict(pairs=()) -> dict:
  result: dict = {}
  _update(result, pairs)  # a list of [key, value], as Python 2 pickled it
  return result


def _encode(text: str, encoding: str) -> bytes:
  if encoding != 'latin1':
    raise TypeError
  return text.encode('latin1')


_KNOWN = {
  'collections.OrderedDict': _ordered_dict,
  'collections.Counter': lambda counts: counts,  # the milestones of torch's schedules
  '_codecs.encode': _encode,
}
