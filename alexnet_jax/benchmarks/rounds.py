"""Sides taking turns at the same work, and what comes of it: medians, spread, ratios."""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

from alexnet_jax.benchmarks.contestants import Sample
from alexnet_jax.benchmarks.worker import Worker

OURS = 'alexnet_jax'


@dataclasses.dataclass(frozen=True)
class Options:
  """How to measure.

  Attributes:
    rounds: turns of each side, or how often a single thing is timed.
    turn_seconds: about how long a turn lasts.
    peers: names of those to compare with; None for all.
    pythons: other interpreters to run our side in.
    profile: folder for traces; None for none.
  """

  rounds: int
  turn_seconds: float
  peers: tuple[str, ...] | None
  pythons: tuple[str, ...] = ()
  profile: Path | None = None

  def wanted(self, peers: dict) -> dict:
    return {name: peers[name] for name in peers if self.peers is None or name in self.peers}


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A finished comparison; the side `OURS` comes first.

  Attributes:
    target, title: which benchmark, and of what.
    batch_size: images of a batch.
    measure: the property of `Sample` that ratios are taken of.
    notes: lines that belong under the table.
    samples: turns of each side; the n-th turns of all sides belong together.
    sides: facts about each side: title, settings, versions, seconds of its first batch.
    absent: peers that were asked for and could not take part, and why.
    environment: hardware, versions and date.
    details: whatever else is worth keeping.
  """

  target: str
  title: str
  batch_size: int
  measure: str
  notes: tuple[str, ...]
  samples: dict[str, list[Sample]]
  sides: dict[str, dict]
  absent: dict[str, str]
  environment: dict
  details: dict

  def rates(self, side: str, measure: str) -> list[float]:
    return [getattr(sample, measure) for sample in self.samples[side]]

  def ratios(self, peer: str) -> list[float]:
    """Our speed over the peer's, round by round, so that what slows both cancels."""
    pairs = zip(self.rates(OURS, self.measure), self.rates(peer, self.measure), strict=True)
    return [ours / theirs for ours, theirs in pairs]

  def to_json(self) -> dict[str, Any]:
    """All of it, raw turns included, as plain values."""
    sides = {}
    for name, facts in self.sides.items():
      sides[name] = facts | {
        'per_second': spread(self.rates(name, 'per_second')),
        'per_core_second': spread(self.rates(name, 'per_core_second')),
        'samples': [sample._asdict() for sample in self.samples[name]],
      }
      if name != OURS:
        sides[name]['ratio'] = spread(self.ratios(name))
    kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del kept['samples']
    return kept | {'sides': sides}

  def table(self) -> str:
    """The comparison for people."""
    measured = 'images/s' if self.measure == 'per_second' else 'images/core-s'
    lines = [
      (
        '',
        'ms/batch',
        'images/s',
        'quartiles',
        'images/core-s',
        'quartiles',
        f'ours/peer in {measured}',
        'quartiles',
      )
    ]
    for name, facts in self.sides.items():
      speed = spread(self.rates(name, 'per_second'))
      per_core = spread(self.rates(name, 'per_core_second'))
      ratio = ('', '') if name == OURS else _cells(spread(self.ratios(name)), '.3f')
      lines.append(
        (
          facts['title'],
          f'{1000 * self.batch_size / speed["median"]:,.1f}',
          *_cells(speed, _digits(speed)),
          *_cells(per_core, _digits(per_core)),
          *ratio,
        )
      )
    absent = [f'{name} was not measured: {reason}' for name, reason in self.absent.items()]
    title = f'{self.target}: {self.title}'
    return '\n'.join([title, *aligned(lines), *self.notes, *absent])


@dataclasses.dataclass(frozen=True)
class Figures:
  """What is no comparison of sides.

  Attributes:
    target, title: which benchmark, and of what.
    lines: the table for people.
    environment: hardware, versions and date.
    details: all values, as they are written as JSON.
  """

  target: str
  title: str
  lines: tuple[str, ...]
  environment: dict
  details: dict

  def table(self) -> str:
    return '\n'.join([f'{self.target}: {self.title}', *self.lines])

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def seconds_table(seconds: dict[str, list[float]]) -> tuple[str, ...]:
  """Lines of a table of how long single things took, each time that they were timed."""
  cells = [('', 'median s', 'quartiles', 'worst', 'times')]
  for name, times in seconds.items():
    cells.append((name, *_cells(spread(times), '.3f'), f'{max(times):.3f}', str(len(times))))
  return tuple(aligned(cells))


def take_turns(
  workers: dict[str, Worker], options: Options
) -> tuple[dict[str, list[Sample]], dict]:
  """Lets the sides work in turn, there and back again, so that a drift favors none.

  Returns:
    The turns of each side, and each side's facts.
  """
  sides = {}
  for name, worker in workers.items():
    seconds = worker.call('prepare', options.turn_seconds)
    sides[name] = {
      'title': worker.contestant.title,
      'settings': worker.contestant.settings,
      'versions': worker.call('versions'),
      'first_batch_seconds': seconds,
    }
    say(f'{worker.contestant.title}: first batch after {seconds:.1f} s')
  samples: dict[str, list[Sample]] = {name: [] for name in workers}
  for number in range(options.rounds):
    say(f'round {number + 1} of {options.rounds}')
    for name in list(workers)[:: -1 if number % 2 else 1]:
      samples[name].append(workers[name].call('measure'))
  return samples, sides


def say(line: str) -> None:
  """Tells what is going on, apart from the results."""
  print(line, file=sys.stderr, flush=True)


def spread(values: list[float]) -> dict[str, float]:
  """Median and quartiles."""
  if len(values) == 1:
    values = values * 2
  low, median, high = statistics.quantiles(values, n=4, method='inclusive')
  return {'median': median, 'lower_quartile': low, 'upper_quartile': high}


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
  """Rows of cells as lines of text; the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    '  '.join(
      cell.rjust(width) if place else cell.ljust(width)
      for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  ]


def _digits(values: dict[str, float]) -> str:
  return ',.0f' if values['median'] >= 100 else '.2f'


def _cells(values: dict[str, float], form: str) -> tuple[str, str]:
  return (
    format(values['median'], form),
    f'{values["lower_quartile"]:{form}} - {values["upper_quartile"]:{form}}',
  )
