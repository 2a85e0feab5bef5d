"""Metrics of predictions: error rates and their intervals, worst classes, confusions.

All are functions of the probabilities and labels of a split, such as a saved `predictions-*.npz`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

TOP_K = {'top1_error': 1, 'top5_error': 5}  # metric -> k


def is_error(probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
  """Whether each label is not among the k most probable classes; ties and NaN count as errors.

  Args:
    probabilities: (n, classes).
    labels: integers (n,).
    k: see `TOP_K`.

  Returns:
    bool (n,).
  """
  own = probabilities[np.arange(len(labels)), labels][:, None]
  above = np.sum(~(probabilities < own), axis=1) - 1  # itself is not below itself
  return above >= k


def compute_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Loss and error rates of a split.

  Args:
    probabilities: (n, classes).
    labels: integers (n,).

  Returns:
    `loss` in nats per image, and the errors of `TOP_K` as fractions; of five classes or fewer there
    is no top5_error.
  """
  own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
  errors = {
    name: float(is_error(probabilities, labels, k).mean())
    for name, k in TOP_K.items()
    if k == 1 or k < probabilities.shape[1]
  }
  return {'loss': float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()), **errors}


def error_interval(wrongs: int, images: int) -> tuple[float, float]:
  """95 % score interval of an error rate (Wilson 1927), as fractions.

  Args:
    wrongs: number of misclassified images.
    images: number of images.
  """
  low, high = stats.binomtest(int(wrongs), images).proportion_ci(0.95, method='wilson')
  return float(low), float(high)


def worst_classes(
  probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], count: int = 10
) -> list[tuple[str, int, float, str]]:
  """The classes with the highest top-1 error, as (name, images, error, most often taken for)."""
  missed, guesses = is_error(probabilities, labels, 1), probabilities.argmax(1)
  rows = []
  for label in np.unique(labels):
    of_class = labels == label
    others = guesses[of_class & missed & (guesses != label)]
    taken_for = classes[int(np.bincount(others).argmax())] if len(others) else ''
    rows.append((classes[label], int(of_class.sum()), float(missed[of_class].mean()), taken_for))
  return sorted(rows, key=lambda row: (-row[2], row[0]))[:count]


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The confusion matrix, int64 (true classes, predicted classes)."""
  classes = probabilities.shape[1]
  pairs = labels.astype(np.int64) * classes + probabilities.argmax(1)
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
