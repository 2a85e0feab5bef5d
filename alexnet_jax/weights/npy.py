"""`.npy` of a dict of layers, as caffe-tensorflow wrote it: NumPy stores it as a pickle.

Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import io
import re
from typing import Any

import numpy as np

from alexnet_jax.weights import layouts, pickles

MAGIC = b'\x93NUMPY'
_HEADER_OF_OBJECT = re.compile(
  rb"\x93NUMPY\x01\0..\{'descr': '\|O[48]?', 'fortran_order': (True|False), 'shape': \(\), \} *\n",
  re.DOTALL,
)


def read(data: bytes) -> dict[str, np.ndarray]:
  """Arrays by '<layer>/kernel' and '<layer>/bias', ordered as in Caffe.

  Raises:
    ValueError: damaged, or not {'conv1': [kernel, bias], ...} or {'conv1': {'weights': kernel,
      'biases': bias}, ...}.
  """
  header = _HEADER_OF_OBJECT.match(data)
  if not header:
    raise ValueError('it has no header of a dictionary of layers')
  file = io.BytesIO(data)
  file.seek(header.end())
  match pickles.read(file, _KNOWN):
    case _Array(value=[dict() as layers]):
      pass
    case _:
      raise ValueError('it is not a dictionary of layers')
  arrays: dict[str, np.ndarray] = {}
  for layer, pair in layers.items():
    match list(pair.values()) if isinstance(pair, dict) else pair:
      case [_Array(value=np.ndarray() as kernel), _Array(value=np.ndarray() as bias)]:
        name = f'{layer}/kernel'
        arrays |= {name: layouts.to_theirs(name, kernel), f'{layer}/bias': bias}
      case _:
        raise ValueError(f'layer {layer!s:.40} is not a pair of arrays')
  return arrays


# What the names in a pickle stand for.


class _Dtype:
  """`numpy.dtype`: REDUCE gives its code, BUILD its byte order."""

  def __init__(self, code: str, *_):
    self.code, self.order = code, '='

  def build(self, version: int, order: str, *_) -> None:
    self.order = order


class _Array:
  """`numpy.ndarray`, which BUILD fills with floats or, of a dict, with a list of it."""

  def __init__(self, *_: Any):
    self.value: Any = None

  def build(self, version: int, shape: tuple, dtype: _Dtype, fortran: bool, data: Any) -> None:
    match dtype.code, data:
      case 'O' | 'O4' | 'O8', list():
        self.value = data
      case 'f2' | 'f4' | 'f8', bytes() | str():
        data = data.encode('latin1') if isinstance(data, str) else data  # str: bytes of Python 2
        values = np.frombuffer(data, ('>' if dtype.order == '>' else '<') + dtype.code)
        self.value = values.reshape(shape, order='F' if fortran else 'C')
      case _:
        raise ValueError(f'it holds an array of type {dtype.code!r:.20}, not of floats')


_KNOWN = {
  'numpy.core.multiarray._reconstruct': _Array,
  'numpy._core.multiarray._reconstruct': _Array,
  'numpy.ndarray': None,  # for _reconstruct, which does not look at it
  'numpy.dtype': _Dtype,
}
