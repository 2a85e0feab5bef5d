"""`.npy`: arrays of floats and bytes, and dicts of them, which NumPy stores as a pickle.

Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import io
import re
from typing import Any

import numpy as np

from alexnet_jax.weights import lazy_array, pickles
from alexnet_jax.weights.lazy_array import LazyArray

MAGIC = b'\x93NUMPY'
_HEADER = re.compile(
  rb"\{'descr': '([<>|])(f2|f4|f8|u1|O)8?', 'fortran_order': (True|False),"
  rb" 'shape': \(((?:\d{1,12}L?, ?)*(?:\d{1,12}L?)?)\), \} *\n"
)


def read(name: str, data: bytes) -> LazyArray:
  """The array in a file.

  Raises:
    ValueError: damaged, or not an array of floats or bytes.
  """
  kind, fortran, shape, body = _parse(data)
  if kind is None:
    raise ValueError(f'{name:.40} is an array of Python objects')
  return lazy_array.from_bytes(name, body, kind, shape, 'F' if fortran else 'C')


def read_object(data: bytes) -> Any:
  """The Python object in a file of `np.save(path, object)`; see `pickles.read`."""
  kind, _, shape, body = _parse(data)
  if kind is not None or shape != ():
    raise ValueError('it is one array, not a dictionary of layers')
  array = pickles.read(io.BytesIO(body))
  items = array.read() if isinstance(array, LazyArray) else None
  return items[0] if isinstance(items, list) and len(items) == 1 else None


def _parse(data: bytes):
  """dtype (None for objects), Fortran order, shape, and what follows the header."""
  length_bytes = 2 if data[6:7] == b'\x01' else 4
  start = 8 + length_bytes
  length = int.from_bytes(data[8:start], 'little')
  match = _HEADER.fullmatch(data[start : start + min(length, 10_000)])
  if data[:6] != MAGIC or not match:
    raise ValueError('it has no header of an array of floats or objects')
  order, code, fortran, sizes = match.groups()
  shape = tuple(int(size) for size in re.findall(rb'\d+', sizes))
  dtype = None if code == b'O' else np.dtype((order + code).decode())
  return dtype, fortran == b'True', shape, memoryview(data)[start + length :]
