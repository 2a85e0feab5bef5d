"""preprocessing.npz, with which a run's net can be used without the training data."""

import dataclasses
from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model.preprocessing import Preprocessing

_NAMES = [field.name for field in dataclasses.fields(Preprocessing)]


def write_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
  """Writes every field as an array of its name."""
  files.write_npz(path, **{name: getattr(preprocessing, name) for name in _NAMES})


def read_preprocessing(path: Path) -> Preprocessing:
  """Reads what `write_preprocessing` wrote.

  Raises:
    UserError: the file is missing or damaged.
  """
  if not path.exists():
    raise UserError(f'{path} is missing: restore it from a copy')
  values = files.read_npz(path, _NAMES, 'restore it from a copy')
  return Preprocessing(
    **{name: array if array.ndim else array.item() for name, array in values.items()}
  )
