"""Rows of a report: runs that differ in their seed alone, against those without the change.

A difference of two rows is the mean over the seeds they share of the difference of their runs.  Its
two intervals of 95 % answer two questions: over seeds (Student's t, paired by seed), what another
seed would give; over images (bootstrap, paired by image), what other validation images would give
these very nets.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from alexnet_jax import config as configs
from alexnet_jax.model import ablations
from alexnet_jax.results import scores
from alexnet_jax.sweep.finished import METRICS, FinishedRun

Interval = tuple[float, float]
_FIELDS = 4  # parts of a row's name
_CLOSE = 0.002  # published differences of no more than this were reported as none


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of an error, a row minus its reference, as fractions.

  Attributes:
    mean: over `pairs` seeds.
    pairs: how many seeds both have.
    over_seeds: 95 % interval; None with fewer than two pairs.
    over_images: 95 % interval; None where predictions are missing or of other images.
  """

  mean: float
  pairs: int
  over_seeds: Interval | None
  over_images: Interval | None


@dataclasses.dataclass(frozen=True)
class ReportRow:
  """Runs of one config.

  Attributes:
    name: its ablations and other fields in which it differs from the base, or "baseline".
    ablations: names.
    others: fields that differ from the base row besides those, {field: value}.
    changes: all fields that differ from it, {field: (base, here)}.
    runs: by seed.
    mean, deviation: of the errors over the runs, {'top1_error': ...}; the sample standard deviation
      needs two runs.
    reference: name of the row it is compared with, '' for none.
    differences: to it, by error.
    verdict: on the published claim; '' where there is no claim or no difference.
  """

  name: str
  ablations: tuple[str, ...]
  others: dict[str, Any]
  changes: dict[str, tuple[Any, Any]]
  runs: list[FinishedRun]
  mean: dict[str, float]
  deviation: dict[str, float]
  reference: str = ''
  differences: dict[str, Difference] = dataclasses.field(default_factory=dict)
  verdict: str = ''

  @property
  def published(self) -> tuple[float | None, float | None]:
    """Published differences of top-1 and top-5 error as fractions, for a single ablation."""
    if len(self.ablations) != 1:
      return None, None
    return tuple(
      None if points is None else points / 100
      for points in ablations.ABLATIONS[self.ablations[0]].difference
    )


def rows(runs: Sequence[FinishedRun]) -> list[ReportRow]:
  """One row a config, the base first, each compared with the same config without its ablations."""
  groups = _groups(runs)
  base = _base(groups)
  found = [_row(base, group) for group in groups]
  found.sort(key=lambda row: (bool(row.changes), len(row.others)))

  def reference(row: ReportRow) -> ReportRow:
    same = (other for other in found if not other.ablations and other.others == row.others)
    return next(same, found[0]) if row.ablations else found[0]

  return [_compared(row, reference(row)) for row in found]


def _groups(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
  """Runs by their config without the seed and what does not alter a run; of a seed the last."""
  groups: dict[str, dict[int, FinishedRun]] = {}
  for run in runs:
    flat = configs.flatten(run.config)
    kept = {k: v for k, v in flat.items() if k != 'seed' and configs.find_field(k).alters_run}
    groups.setdefault(json.dumps(kept, sort_keys=True), {})[run.seed] = run
  return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _differing(old: FinishedRun, new: FinishedRun) -> dict[str, tuple[Any, Any]]:
  changes = configs.diff(old.config, new.config)
  changes.pop('seed', None)
  return changes


def _base(groups: list[list[FinishedRun]]) -> list[FinishedRun]:
  """The group without edits from which the others differ least, best by ablations alone."""

  def distance(group):
    others = [_differing(group[0], other[0]) for other in groups]
    return bool(group[0].config['model']['ablations']), sum(map(len, others))

  def unnamed(group):
    return sum(
      len(_named(group[0], other[0], _differing(group[0], other[0]))[1]) for other in groups
    )

  least = min(map(distance, groups))
  return min((group for group in groups if distance(group) == least), key=unnamed)


def _row(base: list[FinishedRun], group: list[FinishedRun]) -> ReportRow:
  changes = _differing(base[0], group[0])
  names, rest = _named(base[0], group[0], changes)
  title = ['+'.join(names)] if names else [] if rest else [ablations.BASELINE]
  title += [f'{field}={_short(new)}' for field, (_, new) in rest.items()]
  if len(title) > _FIELDS:
    title[_FIELDS:] = [f'{len(title) - _FIELDS} more fields']
  errors = [run.errors for run in group]
  known = [name for name in METRICS if all(name in error for error in errors)]
  values = {name: [error[name] for error in errors] for name in known}
  return ReportRow(
    name=', '.join(title),
    ablations=names,
    others={field: new for field, (_, new) in rest.items()},
    changes=changes,
    runs=group,
    mean={name: statistics.fmean(of) for name, of in values.items()},
    deviation={name: statistics.stdev(of) for name, of in values.items() if len(of) > 1},
  )


def _short(value: Any) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)


def _named(
  base: FinishedRun, run: FinishedRun, changes: Mapping[str, tuple[Any, Any]]
) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]:
  """Changes as names of ablations, and what is left of them."""
  rest = dict(changes)
  names, ours, theirs = [], run.config['model']['ablations'], base.config['model']['ablations']
  if ours != theirs and ours[: len(theirs)] == theirs:
    names = ours[len(theirs) :]
    del rest['model.ablations']
  config = configs.from_json(base.config)
  recipes = [name for name, ablation in ablations.ABLATIONS.items() if ablation.fields]
  effects = {name: configs.ablation_changes(config, name) or {} for name in recipes}
  for name in sorted(recipes, key=lambda name: -len(effects[name])):
    effect = effects[name]
    if effect and all(
      field in rest and rest[field][1] == new for field, (_, new) in effect.items()
    ):
      names.append(name)
      rest = {field: change for field, change in rest.items() if field not in effect}
  return tuple(names), rest


def _compared(row: ReportRow, reference: ReportRow) -> ReportRow:
  if row is reference or not _same_data(row.runs[0], reference.runs[0]):
    return row
  found = {
    name: difference(row.runs, reference.runs, name) for name in row.mean if name in reference.mean
  }
  found = {name: value for name, value in found.items() if value}
  top1 = found.get('top1_error')
  verdict = judge(row.published[0], top1) if top1 and row.published[0] is not None else ''
  return dataclasses.replace(row, reference=reference.name, differences=found, verdict=verdict)


def _same_data(one: FinishedRun, other: FinishedRun) -> bool:
  """Whether two runs were evaluated on the same images, judging by their configs."""
  fields = ('source', 'name', 'dir', 'eval_split', 'validation_fraction', 'num_classes')
  return all(one.config['data'][field] == other.config['data'][field] for field in fields)


def difference(
  ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun], metric: str
) -> Difference | None:
  """The difference of an error over the seeds that two rows share; None if they share none."""
  others = {run.seed: run for run in theirs}
  pairs = [(run, others[run.seed]) for run in ours if run.seed in others]
  if not pairs:
    return None
  values = [mine.errors[metric] - other.errors[metric] for mine, other in pairs]
  return Difference(
    mean=statistics.fmean(values),
    pairs=len(pairs),
    over_seeds=student_interval(values) if len(values) > 1 else None,
    over_images=_over_images(pairs, METRICS[metric]),
  )


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
  """Interval of the mean of at least two values, Student's t with n - 1 degrees of freedom."""
  mean, n = statistics.fmean(values), len(values)
  reach = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * statistics.stdev(values) / n**0.5
  return mean - reach, mean + reach


def _over_images(pairs: Sequence[tuple[FinishedRun, FinishedRun]], k: int) -> Interval | None:
  label = pairs[0][0].label
  if label is None or any(
    run.label is None or not np.array_equal(run.label, label) for pair in pairs for run in pair
  ):
    return None
  gains = sum(mine.wrong(k).astype(int) - other.wrong(k) for mine, other in pairs) / len(pairs)
  return bootstrap_mean(gains)


def bootstrap_mean(
  values: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Percentile bootstrap interval of a mean of few distinct values, drawn as their counts.

  Equal values would make it a point: then it is as wide as Wilson's interval of a share of 0 in as
  many images.
  """
  distinct, counts = np.unique(values, return_counts=True)
  if len(distinct) == 1:
    _, unseen = scores.error_interval(0, len(values), confidence)
    return float(distinct[0] - unseen), float(distinct[0] + unseen)
  draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), resamples)
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws @ distinct / len(values), (tail, 1 - tail))
  return float(low), float(high)


def judge(published: float, measured: Difference) -> str:
  """What the measurement says of a published difference; its sign, for data may be another.

  Args:
    published: difference of the top-1 error as a fraction.
    measured: the same, measured here.
  """
  interval = measured.over_seeds or measured.over_images
  if interval is None:
    return 'cannot tell: one seed and no predictions'
  if measured.over_seeds:
    kind = f'{measured.pairs} seeds'
  else:
    kind = 'one seed: the interval is over images alone'
  low, high = interval
  if abs(published) <= _CLOSE:
    if low <= 0 <= high:
      return f'consistent: the interval contains 0, as none was published ({kind})'
    return f'contradicted: {"worse" if low > 0 else "better"}, where none was published ({kind})'
  if low <= 0 <= high:
    return f'not confirmed: the interval contains 0 ({kind})'
  same = (low > 0) == (published > 0)
  direction = 'worse' if low > 0 else 'better'
  return f'{"confirmed" if same else "contradicted"}: {direction} ({kind})'
