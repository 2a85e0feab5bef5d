"""Finished runs as a report sees them: config, results, record, predictions."""

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
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.metrics import read_metrics
from alexnet_jax.run.predictions import read_predictions, results_prefix


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A finished run.

  Attributes:
    workdir: its folder.
    config: its config, as plain dicts.
    results: its results.json.
    environment: versions and hardware.
    label: int (n,), of the validation images; None where predictions were not saved.
    probabilities: float32 (n, classes), or None.
  """

  workdir: Path
  config: dict[str, Any]
  results: dict[str, Any]
  environment: dict[str, Any]
  label: np.ndarray | None
  probabilities: np.ndarray | None

  @property
  def seed(self) -> int:
    return self.config['seed']

  @property
  def views(self) -> int:
    return self.config['eval']['final_views']

  @cached_property
  def errors(self) -> dict[str, float]:
    """loss, top1_error and, with more than 5 classes, top5_error, over the final views.

    Computed from the predictions; taken from results.json where there are none.
    """
    if self.probabilities is not None:
      return scores.errors(self.probabilities, self.label)
    same = self.views == self.config['eval']['views']
    prefix = 'eval' if same else results_prefix(self.views)
    found = {name: self.results.get(f'{prefix}/{name}') for name in ('loss', *METRICS)}
    return {name: value for name, value in found.items() if value is not None}

  @cached_property
  def record(self) -> list[dict]:
    """The lines of metrics.jsonl, each with its epoch: batches are of one size."""
    lines = read_metrics(self.workdir)
    known = (line['epoch'] / line['step'] for line in lines if line['step'] and 'epoch' in line)
    per_step = next(known, 1.0)
    return [{'epoch': line['step'] * per_step} | line for line in lines]

  def wrong(self, k: int) -> np.ndarray | None:
    """Which validation images are wrong, bool (n,); None where predictions were not saved."""
    return None if self.probabilities is None else scores.wrong(self.probabilities, self.label, k)


METRICS = {'top1_error': 1, 'top5_error': 5}  # and their k


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
  predictions = read_predictions(folder.predictions('last', config['eval']['final_views']))
  return FinishedRun(
    workdir,
    config,
    files.read_json(folder.results),
    files.read_json(folder.environment),
    predictions and predictions.label,
    predictions and predictions.probabilities,
  )
