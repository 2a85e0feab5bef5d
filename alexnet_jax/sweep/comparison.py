"""Rows of a report: runs that differ in their seed alone, against those without the ablation.

A difference of two rows is the mean, over the seeds that both have, of the difference of their
runs.  It has two 95 % intervals: over seeds (Student's t, paired by seed), for what other seeds
would give; over images (bootstrap, paired by image), for what the same nets would give on other
validation images.
"""

import dataclasses
import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

from alexnet_jax import config as configs
from alexnet_jax import config_files
from alexnet_jax.model.ablations import ABLATIONS, BASELINE
from alexnet_jax.results import scores
from alexnet_jax.sweep.finished import FinishedRun

Interval = tuple[float, float]
_FIELDS = 4  # parts of a row's name
_CLOSE = 0.002  # published differences of no more than this were reported as none


@dataclasses.dataclass
class Statistics:
  """An error of a row's runs, as a fraction.

  Attributes:
    mean: over seeds; None if a run lacks this error.
    deviation: standard deviation of the sample; None of a single run.
    published: difference that was published of the row's ablation, if it has just one.
    difference: to the reference row, over `pairs` seeds that both have; None without one.
    over_seeds: interval of the difference; None of a single pair.
    over_images: the same; None without predictions of the same images.
  """

  mean: float | None = None
  deviation: float | None = None
  published: float | None = None
  difference: float | None = None
  pairs: int = 0
  over_seeds: Interval | None = None
  over_images: Interval | None = None


@dataclasses.dataclass
class ReportRow:
  """Runs of one config.

  Attributes:
    name: its ablations and other fields in which it differs from the base, or "baseline".
    ablations: names.
    others: fields that differ from the base for other reasons, {field: value}.
    changes: all fields that differ from the base, {field: (base, here)}.
    runs: by seed.
    statistics: {metric: its statistics}, of each metric of `scores.TOP_K`.
    reference: name of the row it is compared with, or ''.
    verdict: whether the published difference is confirmed; '' where none was published or measured.
  """

  name: str
  ablations: tuple[str, ...]
  others: dict[str, Any]
  changes: dict[str, tuple[Any, Any]]
  runs: list[FinishedRun]
  statistics: dict[str, Statistics] = dataclasses.field(default_factory=dict)
  reference: str = ''
  verdict: str = ''

  @property
  def top1(self) -> Statistics:
    return self.statistics['top1_error']


def compare_runs(runs: Sequence[FinishedRun]) -> list[ReportRow]:
  """One row a config, the base first, each compared with the same config without its ablations.

  The base is the config from which the others differ least, if possible one without ablations.
  """
  groups = _groups(runs)
  rows = min((_make_rows(group[0], groups) for group in groups), key=_distance)
  for row in rows:
    row.statistics = {metric: _statistics(row, metric) for metric in scores.TOP_K}
  for row in rows:
    same = (other for other in rows if not other.ablations and other.others == row.others)
    reference = next(same, rows[0]) if row.ablations else rows[0]
    if row is not reference and _same_data(row.runs[0], reference.runs[0]):
      _compare(row, reference)
  return rows


def _groups(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
  """Runs by their config without seed and fields that do not alter a run; of a seed the last."""
  groups: dict[str, dict[int, FinishedRun]] = {}
  for run in runs:
    flat = configs.flatten(run.config)
    same = {k: v for k, v in flat.items() if k != 'seed' and configs.find_field(k).alters_run}
    groups.setdefault(json.dumps(same, sort_keys=True), {})[run.seed] = run
  return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _make_rows(base: FinishedRun, groups: Sequence[list[FinishedRun]]) -> list[ReportRow]:
  """The rows of all groups, named by how they differ from a base, whose row is the first."""
  effects = _ablation_effects(base)
  rows = [_make_row(base, group, effects) for group in groups]
  return sorted(rows, key=lambda row: (bool(row.changes), len(row.others)))


def _distance(rows: Sequence[ReportRow]) -> tuple[bool, int, int]:
  """How much rows differ from their base."""
  ablated = bool(rows[0].runs[0].config['model']['ablations'])
  return ablated, sum(len(row.changes) for row in rows), sum(len(row.others) for row in rows)


def _ablation_effects(base: FinishedRun) -> dict[str, dict[str, Any]]:
  """{ablation: fields it would set in this config}, those of most fields first."""
  config = configs.from_json(base.config)
  effects = {
    name: {field: new for field, (_, new) in config_files.ablation_changes(config, name).items()}
    for name, ablation in ABLATIONS.items()
    if ablation.fields
  }
  return dict(sorted(effects.items(), key=lambda item: -len(item[1])))


def _make_row(
  base: FinishedRun, runs: list[FinishedRun], effects: dict[str, dict[str, Any]]
) -> ReportRow:
  config = runs[0].config
  changes = configs.diff(base.config, config)
  changes.pop('seed', None)
  others = {field: new for field, (_, new) in changes.items()}
  names: list[str] = []
  ours, theirs = config['model']['ablations'], base.config['model']['ablations']
  if ours != theirs and ours[: len(theirs)] == theirs:
    names += ours[len(theirs) :]
    del others['model.ablations']
  for name, effect in effects.items():
    if effect and effect.items() <= others.items():
      names.append(name)
      others = {field: new for field, new in others.items() if field not in effect}
  title = ['+'.join(names)] if names else [] if others else [BASELINE]
  title += [
    f'{field}={new:g}' if isinstance(new, float) else f'{field}={new}'
    for field, new in others.items()
  ]
  if len(title) > _FIELDS:
    title[_FIELDS:] = [f'{len(title) - _FIELDS} more fields']
  return ReportRow(', '.join(title), tuple(names), others, changes, runs)


def _statistics(row: ReportRow, metric: str) -> Statistics:
  """Those of the row by itself."""
  result = Statistics()
  values = [run.errors[metric] for run in row.runs if metric in run.errors]
  if len(values) == len(row.runs):
    result.mean = fmean(values)
    result.deviation = stdev(values) if len(values) > 1 else None
  if len(row.ablations) == 1:
    result.published = ABLATIONS[row.ablations[0]].published.get(metric)
  return result


def _same_data(one: FinishedRun, other: FinishedRun) -> bool:
  """Whether two runs were evaluated on the same images, judging by their configs."""
  fields = ('source', 'name', 'dir', 'eval_split', 'validation_fraction', 'num_classes')
  return all(one.config['data'][field] == other.config['data'][field] for field in fields)


def _compare(row: ReportRow, reference: ReportRow) -> None:
  """Adds the statistics of the row against its reference, over the seeds that both have."""
  row.reference = reference.name
  others = {run.seed: run for run in reference.runs}
  pairs = [(run, others[run.seed]) for run in row.runs if run.seed in others]
  for metric, found in row.statistics.items():
    if pairs and found.mean is not None and reference.statistics[metric].mean is not None:
      values = [mine.errors[metric] - other.errors[metric] for mine, other in pairs]
      found.difference, found.pairs = fmean(values), len(pairs)
      found.over_seeds = student_interval(values)
      found.over_images = _over_images(pairs, scores.TOP_K[metric])
  if row.top1.difference is not None and row.top1.published is not None:
    row.verdict = judge(row.top1)


def student_interval(values: Sequence[float]) -> Interval | None:
  """95 % interval of a mean, Student's t with n - 1 degrees of freedom; None of a single value."""
  if len(values) < 2:
    return None
  # Not `stats.t.interval`, which has none for values that are all the same.
  reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
  return fmean(values) - reach, fmean(values) + reach


def _over_images(pairs: Sequence[tuple[FinishedRun, FinishedRun]], k: int) -> Interval | None:
  predictions = [run.predictions for pair in pairs for run in pair]
  known = [each for each in predictions if each]
  if len(known) < len(predictions) or any(
    not np.array_equal(each.label, known[0].label) for each in known
  ):
    return None
  errors = [scores.is_error(each.probabilities, each.label, k).astype(int) for each in known]
  return bootstrap_mean((np.sum(errors[::2], axis=0) - np.sum(errors[1::2], axis=0)) / len(pairs))


def bootstrap_mean(values: np.ndarray) -> Interval:
  """95 % percentile bootstrap interval of a mean of few distinct values, drawn as their counts.

  Where all values are equal, it is as wide as Wilson's interval of 0 errors in as many images.
  """
  distinct, counts = np.unique(values, return_counts=True)
  if len(distinct) == 1:
    _, unseen = scores.error_interval(0, len(values))
    return float(distinct[0] - unseen), float(distinct[0] + unseen)
  draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=2000)
  low, high = np.quantile(draws @ distinct / len(values), (0.025, 0.975))
  return float(low), float(high)


def judge(error: Statistics) -> str:
  """Compares the sign of the measured difference with that of the published one."""
  interval = error.over_seeds or error.over_images
  if interval is None or error.published is None:
    return 'inconclusive: one seed and no predictions'
  one_seed = 'one seed: the interval is over images alone'
  kind = f'{error.pairs} seeds' if error.over_seeds else one_seed
  low, high = interval
  none_published = abs(error.published) <= _CLOSE
  if low <= 0 <= high:
    if none_published:
      return f'consistent: no difference was published, the interval contains 0 ({kind})'
    return f'inconclusive: the interval contains 0 ({kind})'
  direction = 'worse' if low > 0 else 'better'
  if none_published:
    return f'contradicted: {direction}, but no difference was published ({kind})'
  same = (low > 0) == (error.published > 0)
  return f'{"confirmed" if same else "contradicted"}: {direction} ({kind})'
