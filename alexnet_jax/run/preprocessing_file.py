"""preprocessing.npz: with it the folder of a run is enough to use its net, without the data."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model.preprocessing import Preprocessing


def write_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
  """Writes every field as an array of its name."""
  buffer = io.BytesIO()
  fields = dataclasses.fields(preprocessing)
  np.savez(buffer, **{field.name: getattr(preprocessing, field.name) for field in fields})
  files.write(path, buffer.getvalue())


def read_preprocessing(path: Path) -> Preprocessing:
  """Reads what `write_preprocessing` wrote.

  Raises:
    UserError: the file is missing or damaged.
  """
  if not path.exists():
    raise UserError(f'{path.parent} has lost its {path.name}: restore it from a copy')
  try:
    # From memory, since np.load leaves a damaged file open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
      values = {field.name: saved[field.name] for field in dataclasses.fields(Preprocessing)}
    preprocessing = Preprocessing(
      **{name: array if array.ndim else array.item() for name, array in values.items()}
    )
    crop, mean = preprocessing.crop, preprocessing.mean
    if np.shape(mean) not in ((3,), (crop, crop, 3)) or np.shape(preprocessing.scale) != (3,):
      raise ValueError(f'a mean of shape {np.shape(mean)} for views of {crop} pixels')
    return preprocessing
  except Exception as error:  # NumPy's readers raise nearly anything on damaged bytes
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(f'{path} is damaged ({reason}): restore it from a copy') from None
