"""Saved predictions of every validation image: all probabilities, or the best five classes.

The five are small enough to keep beside published figures.  A folder has those of one data set:
`<run>.npz` with `top5`, uint8 (n, 5), best first, and `labels.npz` with `label`, uint8 (n,), and
`names_sha256`, of the images' names, one a line, in the order of the rows.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
  """The prefix of results of the final views in results.json: 'ten_views' of 'ten_views/loss'."""
  return VIEW_NAMES[views].replace(' ', '_')


def write_predictions(path: Path, predictions: SplitProbabilities) -> None:
  """Writes an .npz with `label` and `probabilities`, row i being the i-th validation image."""
  files.write_npz(path, **vars(predictions))


def read_predictions(path: Path) -> SplitProbabilities | None:
  """Reads what `write_predictions` wrote; None if there is no such file.

  Raises:
    UserError: damaged.
  """
  if not path.exists():
    return None
  advice = f'write it again with python -m alexnet_jax.evaluate --workdir={path.parent}'
  return SplitProbabilities(**files.read_npz(path, ('label', 'probabilities'), advice))


def write_top5(path: Path, predictions: SplitProbabilities, names: Sequence[str]) -> None:
  """Writes the five most probable classes of every image, and `labels.npz` beside them.

  A label ties last with equal probabilities, as in `results.scores`.

  Raises:
    UserError: the folder has predictions of other images, or cannot be written.
  """
  label, probabilities = predictions.label, predictions.probabilities
  order = np.lexsort((np.arange(probabilities.shape[1]) == label[:, None], -probabilities))
  number = np.min_scalar_type(probabilities.shape[1] - 1)
  lines = '\n'.join(names).encode(errors='surrogateescape')
  data: dict[str, Any] = {
    'label': label.astype(number),
    'names_sha256': hashlib.sha256(lines).hexdigest(),
  }
  labels = path.with_name('labels.npz')
  with files.one_line_error(f'--top5={path}'):
    if labels.exists():
      found = files.read_npz(labels, data, 'delete it and the predictions in its folder')
      if any(not np.array_equal(found[name], data[name]) for name in data):
        raise UserError(f'{labels} is of other images: give --top5 a file in another folder')
    files.write_npz(labels, **data)
    files.write_npz(path, top5=order[:, :5].astype(number))
