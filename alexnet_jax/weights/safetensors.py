"""`.safetensors`: a length, a JSON header of names, types, shapes and offsets, and the values.

The format is those four things (github.com/huggingface/safetensors, README "Format"), so that 30
lines read and write it with messages of our own; the tests compare with the library.
"""

import json
import struct

import ml_dtypes
import numpy as np

from alexnet_jax.weights import blob
from alexnet_jax.weights.blob import Blob

MAX_HEADER = 1_000_000  # bytes; a net of 16 arrays needs 1,500
_DTYPES = {
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F32': np.dtype('<f4'),
  'F64': np.dtype('<f8'),
}


def read(data: bytes) -> dict[str, Blob]:
  """Arrays by name.

  Raises:
    ValueError: damaged, or of numbers that are not floats.
  """
  (size,) = struct.unpack('<Q', data[:8])
  if size > min(MAX_HEADER, len(data) - 8):
    raise ValueError(f'its header claims {size:,} bytes; the file has {len(data):,}')
  values = memoryview(data)[8 + size :]
  try:
    header = json.loads(data[8 : 8 + size])
    header.pop('__metadata__', None)
    return {name: _blob(name, entry, values) for name, entry in header.items()}
  except (AttributeError, KeyError, RecursionError, TypeError) as error:
    raise ValueError(f'its header is damaged ({type(error).__name__})') from None


def _blob(name: str, entry: dict, values: memoryview) -> Blob:
  if entry['dtype'] not in _DTYPES:
    raise ValueError(f'{name:.40} is of type {entry["dtype"]!r:.20}, not of floats')
  start, end = entry['data_offsets']
  if not 0 <= start <= end <= len(values):
    raise ValueError(f'{name:.40} lies outside the file, which may be cut short')
  return blob.from_bytes(name, values[start:end], _DTYPES[entry['dtype']], tuple(entry['shape']))


def write(tensors: dict[str, np.ndarray]) -> bytes:
  """A file of float32 arrays, marked as torch's as `transformers` wants it."""
  header, place = {'__metadata__': {'format': 'pt'}}, 0
  for name, array in tensors.items():
    offsets = [place, place + 4 * array.size]
    header[name] = {'dtype': 'F32', 'shape': list(array.shape), 'data_offsets': offsets}
    place = offsets[1]
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # so that the values are aligned
  arrays = [np.asarray(array, '<f4').tobytes() for array in tensors.values()]
  return b''.join([struct.pack('<Q', len(text)), text, *arrays])
