"""Saved predictions: the probabilities that a net gave every validation image."""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from alexnet_jax import files
from alexnet_jax.errors import UserError

VIEW_NAMES = {1: 'center view', 9: 'nine views', 10: 'ten views'}


@dataclasses.dataclass(frozen=True)
class SplitProbabilities:
  """Predictions for every image: label int32 (n,), probabilities float32 (n, classes)."""

  label: np.ndarray
  probabilities: np.ndarray


def results_prefix(views: int) -> str:
  """Where results.json has the errors over the final views: 'ten_views' of 'ten_views/loss'."""
  return VIEW_NAMES[views].replace(' ', '_')


def write_predictions(path: Path, predictions: SplitProbabilities) -> None:
  """Writes an .npz with `label` and `probabilities`, row i being the i-th validation image."""
  buffer = io.BytesIO()
  np.savez(buffer, label=predictions.label, probabilities=predictions.probabilities)
  files.write(path, buffer.getvalue())


def read_predictions(path: Path) -> SplitProbabilities | None:
  """What `write_predictions` wrote; None if there is no such file.

  Raises:
    UserError: damaged.
  """
  if not path.exists():
    return None
  try:
    # Opened here because np.load leaves a damaged file open.
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as saved:
      label, probabilities = saved['label'], saved['probabilities']
    if (
      label.ndim != 1
      or probabilities.ndim != 2
      or len(label) != len(probabilities)
      or not 0 <= label.min() <= label.max() < probabilities.shape[1]
    ):
      raise ValueError(f'shapes {label.shape} and {probabilities.shape}, or labels, do not fit')
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path} is damaged ({error}): write it again with python -m alexnet_jax.evaluate'
      f' --workdir={path.parent}'
    ) from None
  return SplitProbabilities(label, probabilities)
