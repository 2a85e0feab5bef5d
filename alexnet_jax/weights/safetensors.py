"""`.safetensors`, by the library; its own NumPy reader lacks bfloat16."""

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

_DTYPES = {'F16': '<f2', 'BF16': ml_dtypes.bfloat16, 'F32': '<f4', 'F64': '<f8'}


def read(data: bytes) -> dict[str, np.ndarray]:
  """Arrays by name.

  Raises:
    ValueError: damaged, or of numbers that are not floats.
  """
  try:
    entries = safetensors.deserialize(data)
  except safetensors.SafetensorError as error:
    raise ValueError(f'its header is damaged, or it is cut short ({error})') from None
  arrays = {}
  for name, entry in entries:
    if entry['dtype'] not in _DTYPES:
      raise ValueError(f'{name:.40} is of type {entry["dtype"]}, not of floats')
    arrays[name] = np.frombuffer(entry['data'], _DTYPES[entry['dtype']]).reshape(entry['shape'])
  return arrays


def write(tensors: dict[str, np.ndarray]) -> bytes:
  """A file of float32 arrays, marked as torch's as `transformers` wants it."""
  arrays = {name: np.ascontiguousarray(array, '<f4') for name, array in tensors.items()}
  return save(arrays, metadata={'format': 'pt'})
