"""Finished runs, read from their folders: config, results, metrics, predictions."""

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.results import scores
from alexnet_jax.results.figures import series
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.metrics import read_metrics
from alexnet_jax.run.predictions import SplitProbabilities, read_predictions, results_prefix


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A finished run.

  Attributes:
    workdir: its folder.
    config: its config, as plain dicts.
    results: its results.json, with versions and hardware.
    predictions: of the validation images, with the final views; None where they were not saved.
  """

  workdir: Path
  config: dict[str, Any]
  results: dict[str, Any]
  predictions: SplitProbabilities | None

  @property
  def seed(self) -> int:
    return self.config['seed']

  @cached_property
  def errors(self) -> dict[str, float]:
    """The errors of `scores.TOP_K`, over the final views.

    Computed from the predictions; taken from results.json where there are none.
    """
    if self.predictions:
      return scores.compute_metrics(self.predictions.probabilities, self.predictions.label)
    views = self.config['eval']['final_views']
    prefix = 'eval' if views == self.config['eval']['views'] else results_prefix(views)
    found = {name: self.results.get(f'{prefix}/{name}') for name in scores.TOP_K}
    return {name: value for name, value in found.items() if value is not None}

  @cached_property
  def metrics(self) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return read_metrics(self.workdir)

  @property
  def validation_errors(self) -> np.ndarray:
    """(epoch, top-1 error) of each evaluation, (n, 2)."""
    return series(self.metrics, 'eval/top1_error')

  @cached_property
  def training_errors(self) -> np.ndarray:
    """(epoch, mean top-1 error over the last epoch until then), from epoch 1 on, (n, 2).

    As logged while training, so with augmentation and dropout.
    """
    epochs, errors = series(self.metrics, 'train/top1_error').T
    weights = np.diff(epochs, prepend=0)  # proportional to the steps since the line before
    points = []
    for epoch in epochs[epochs >= 1]:
      last = (epoch - 1 < epochs) & (epochs <= epoch)
      points.append((epoch, np.average(errors[last], weights=weights[last])))
    return np.array(points).reshape(-1, 2)

  def epochs_to(self, error: float) -> float | None:
    """The first epoch whose training error is at most `error` (paper, Figure 1: 25 %), or None."""
    reached = self.training_errors[self.training_errors[:, 1] <= error, 0]
    return float(reached[0]) if len(reached) else None


def find_finished_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[Path]]:
  """The finished runs in some folders and below, and the folders of unfinished ones.

  Raises:
    UserError: no such folder, no finished run, or a damaged one.
  """
  workdirs: dict[Path, None] = {}
  for folder in folders:
    if not folder.is_dir():
      raise UserError(f'{folder} is not a folder: give folders of runs or of sweeps')
    for path, below, _ in os.walk(folder):
      run = RunFolder(path)
      below[:] = sorted({*below} - {run.checkpoints.name, run.figures.name})
      if run.config.exists():
        workdirs[run.path] = None
  finished = [workdir for workdir in workdirs if RunFolder(workdir).results.exists()]
  if not finished:
    shown = ', '.join(map(str, folders))
    names = f'{RunFolder("").config} and {RunFolder("").results}'
    raise UserError(f'{shown}: holds no finished run, a folder with {names}')
  return [_read(workdir) for workdir in finished], [w for w in workdirs if w not in finished]


def _read(workdir: Path) -> FinishedRun:
  folder = RunFolder(workdir)
  config = configs.to_json(read_run_config(workdir))
  return FinishedRun(
    workdir,
    config,
    files.read_json(folder.results),
    read_predictions(folder.predictions('last', config['eval']['final_views'])),
  )
