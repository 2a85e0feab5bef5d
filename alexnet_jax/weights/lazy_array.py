"""Arrays that are not read yet, so that shapes are checked before any bytes are copied."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass
class LazyArray:
  """An array to be read.

  Attributes:
    shape: as the file says.
    read: returns the array; ValueError if the bytes are not there.
  """

  shape: Shape
  read: Callable[[], np.ndarray]


def from_bytes(name: str, data, dtype, shape: Shape, order: str = 'C') -> LazyArray:
  """An array of values that lie one after another.

  Args:
    name: for messages.
    data: bytes or a memoryview.
    dtype: of the values, with their byte order.
    shape: of the array, slowest axis first.
    order: 'F' if the first axis is the fastest in `data`.

  Raises:
    ValueError: the number of bytes is not that of the shape.
  """
  if not all(type(size) is int and size >= 0 for size in shape):
    raise ValueError(f'{name} has no proper shape')
  wanted = math.prod(shape) * np.dtype(dtype).itemsize
  if len(data) != wanted:
    raise ValueError(
      f'{name} has {len(data):,} bytes, but its shape {shape_text(shape)} of {np.dtype(dtype).name}'
      f' needs {wanted:,}'
    )
  return LazyArray(shape, lambda: np.frombuffer(data, dtype).reshape(shape, order=order))


def shape_text(shape: Shape) -> str:
  """(3, 4) -> '3x4'."""
  return 'x'.join(map(str, shape[:8])) or 'scalar'
