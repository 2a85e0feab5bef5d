"""Figure 1 of the paper: epochs until the training error has fallen to 25 %, ReLU against tanh.

The paper tuned the learning rates of the two separately, and used no regularization; so the fastest
rate of each counts.  Its net and rates are not known.

The training error is the one of the record, on views as trained on (with whatever augmentation and
dropout the config has), averaged over the last epoch: no extra pass over the training images.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from alexnet_jax.sweep.comparison import ReportRow

LEVEL = 0.25
PUBLISHED = 6.0  # times as many epochs with tanh


@dataclasses.dataclass(frozen=True)
class Speed:
  """How fast the runs of a row learn.

  Attributes:
    unit: 'ReLU' or 'tanh'.
    row: its name.
    rate: initial learning rate.
    epochs: to the level, for each seed; None where it was not reached.
  """

  unit: str
  row: str
  rate: float
  epochs: list[float | None]

  @property
  def mean(self) -> float | None:
    """Mean over seeds; None unless all reached it."""
    reached = [epochs for epochs in self.epochs if epochs is not None]
    return statistics.fmean(reached) if len(reached) == len(self.epochs) else None


def speeds(rows: Sequence[ReportRow]) -> list[Speed]:
  """The rows that are plain or have tanh alone; [] if there is no tanh among them."""
  found = [
    Speed(
      'tanh' if row.ablations else 'ReLU',
      row.name,
      row.runs[0].config['optimizer']['learning_rate'],
      [epochs_to(run.record, LEVEL) for run in row.runs],
    )
    for row in rows
    if row.ablations in ((), ('tanh',))
  ]
  found.sort(key=lambda speed: (speed.unit, speed.rate))
  return found if any(speed.unit == 'tanh' for speed in found) else []


def ratio(found: Sequence[Speed]) -> float | None:
  """Fewest epochs with tanh over fewest with ReLU; None if one of them never got there."""
  relu, tanh = (
    min((s.mean for s in found if s.unit == unit and s.mean is not None), default=None)
    for unit in ('ReLU', 'tanh')
  )
  return None if relu is None or tanh is None else tanh / relu


def verdict(found: Sequence[Speed]) -> str:
  times = ratio(found)
  if times is None:
    late = ' and '.join(
      unit
      for unit in ('ReLU', 'tanh')
      if all(speed.mean is None for speed in found if speed.unit == unit)
    )
    return f'cannot tell: {late} did not reach {LEVEL:.0%} training error with every seed'
  if times > 1:
    text = (
      f'confirmed in sign: tanh takes {times:.1f} times as many epochs (published: {PUBLISHED:g}'
      ' times, with a net and rates that are not known)'
    )
  else:
    text = f'contradicted: tanh takes {times:.2f} times the epochs of ReLU'
  untuned = len({speed.rate for speed in found}) == 1
  return text + ', but with one learning rate, where the paper tuned both' * untuned


def training_errors(record: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
  """(epoch, mean training error over the epoch before it), from the end of the first epoch on."""
  lines, previous = [], 0.0
  for line in record:
    if 'train/top1_error' in line and 'epoch' in line:
      lines.append((line['epoch'], line['step'] - previous, line['train/top1_error']))
      previous = line['step']
  points, first = [], 0
  for i, (epoch, _, _) in enumerate(lines):
    while lines[first][0] <= epoch - 1:
      first += 1
    window = lines[first : i + 1]
    steps = sum(count for _, count, _ in window)
    if epoch >= 1 and steps:
      points.append((epoch, sum(count * error for _, count, error in window) / steps))
  return points


def epochs_to(record: Sequence[Mapping[str, float]], level: float) -> float | None:
  """The first epoch whose training error is at most `level`; None if there is none."""
  return next((epoch for epoch, error in training_errors(record) if error <= level), None)
