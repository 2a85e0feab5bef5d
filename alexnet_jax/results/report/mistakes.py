"""Where nets fail: which classes are taken for which, and the surest wrong answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.data import preparation, store
from alexnet_jax.errors import UserError
from alexnet_jax.results.report.runs import Run


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A wrong answer.

  Attributes:
    image: number of the held-out image.
    label, answer: classes.
    probability: of the answer.
  """

  image: int
  label: int
  answer: int
  probability: float


def confusion(runs: Sequence[Run]) -> np.ndarray | None:
  """How often a label (row) got an answer (column), int (classes, classes), over all runs."""
  runs = [run for run in runs if run.probabilities is not None]
  if not runs:
    return None
  classes = runs[0].probabilities.shape[1]
  pairs = [run.label.astype(np.int64) * classes + run.probabilities.argmax(1) for run in runs]
  return np.bincount(np.concatenate(pairs), minlength=classes**2).reshape(classes, classes)


def surest(run: Run, count: int = 12) -> list[Mistake]:
  """The wrong answers of highest probability, the surest first."""
  if run.probabilities is None:
    return []
  answers = run.probabilities.argmax(1)
  sure = run.probabilities[np.arange(len(answers)), answers]
  wrong = np.flatnonzero(answers != run.label)
  order = wrong[np.argsort(-sure[wrong], kind='stable')[:count]]
  return [Mistake(int(i), int(run.label[i]), int(answers[i]), float(sure[i])) for i in order]


def held_out(run: Run) -> store.Store | None:
  """The store that a run was evaluated on, if it is there and holds the same labels.

  Nothing is prepared for the sake of a report.
  """
  data = configs.from_json(run.config).data
  try:
    if data.source in ('digits', 'synthetic'):
      found = preparation.prepare_store(data)
    else:
      found = store.open_store(preparation.store_path(data))
  except UserError:
    return None
  same = run.label is not None and np.array_equal(found.eval.labels, run.label)
  return found if same else None
