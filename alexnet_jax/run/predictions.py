"""Saved predictions: the probabilities that a net gave every validation image."""

import dataclasses
from pathlib import Path

import numpy as np

from alexnet_jax import files

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
  files.write_npz(path, **vars(predictions))


def read_predictions(path: Path) -> SplitProbabilities | None:
  """What `write_predictions` wrote; None if there is no such file.

  Raises:
    UserError: damaged.
  """
  if not path.exists():
    return None
  advice = f'write it again with python -m alexnet_jax.evaluate --workdir={path.parent}'
  return SplitProbabilities(**files.read_npz(path, ('label', 'probabilities'), advice))
