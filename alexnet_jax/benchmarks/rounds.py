"""Contestants take turns at the same work; what comes of it are medians, quartiles and ratios."""

import contextlib
import dataclasses
import statistics
from pathlib import Path
from typing import Any

from alexnet_jax.benchmarks.contestants import Sample, Unavailable
from alexnet_jax.benchmarks.worker import Contestant, Worker
from alexnet_jax.terminal import Console, aligned

OURS = 'alexnet_jax'


@dataclasses.dataclass(frozen=True)
class Options:
  """How to measure.

  Attributes:
    rounds: turns of each contestant, or how often a single thing is timed.
    turn_seconds: about how long a turn lasts.
    peers: names of those to compare with; None for all.
    pythons: other interpreters to run our training step in.
    profile: folder for traces; None for none.
  """

  rounds: int
  turn_seconds: float
  peers: tuple[str, ...] | None
  pythons: tuple[str, ...] = ()
  profile: Path | None = None

  def wanted(self, peers: dict[str, Contestant]) -> dict[str, Contestant]:
    return {name: peers[name] for name in peers if self.peers is None or name in self.peers}


@dataclasses.dataclass(frozen=True)
class Result:
  """What a benchmark has found; `dataclasses.asdict` of it is written as JSON.

  Attributes:
    target, title: which benchmark, and of what.
    lines: the table, and notes under it.
    environment: hardware, versions and date.
    details: the values behind the lines.
    contestants: for each, `OURS` first: title, settings, versions, seconds of the first batch,
      every turn, and median and quartiles of its speed and of the ratio to ours.
    absent: peers that could not take part, and why.
  """

  target: str
  title: str
  lines: tuple[str, ...]
  environment: dict
  details: dict
  contestants: dict[str, dict] = dataclasses.field(default_factory=dict)
  absent: dict[str, str] = dataclasses.field(default_factory=dict)

  def table(self) -> str:
    absent = (f'{name} was not measured: {reason}' for name, reason in self.absent.items())
    return '\n'.join([f'{self.target}: {self.title}', *self.lines, *absent])

  def alone(self) -> str:
    """Why there is nothing to compare with, if that was asked for; else ''."""
    return next(iter(self.absent.values())) if self.absent and len(self.contestants) == 1 else ''


@dataclasses.dataclass(frozen=True)
class Turns:
  """The turns of contestants; the n-th of all belong together.

  Attributes:
    samples: the turns of each; `OURS` comes first.
    facts: title, settings, versions and first_batch_seconds of each.
    measure: the property of `Sample` that ratios are taken of.
  """

  samples: dict[str, list[Sample]]
  facts: dict[str, dict]
  measure: str

  def rates(self, name: str, measure: str = '') -> list[float]:
    return [getattr(sample, measure or self.measure) for sample in self.samples[name]]

  def ratios(self, peer: str) -> list[float]:
    """Our speed over the peer's, round by round, so that what slows both cancels."""
    pairs = zip(self.rates(OURS), self.rates(peer), strict=True)
    return [ours / theirs for ours, theirs in pairs]

  def contestants(self) -> dict[str, dict[str, Any]]:
    """See `Result.contestants`."""
    found = {}
    for name, facts in self.facts.items():
      found[name] = facts | {
        'per_second': spread(self.rates(name, 'per_second')),
        'per_core_second': spread(self.rates(name, 'per_core_second')),
        'samples': [sample._asdict() for sample in self.samples[name]],
      }
      if name != OURS:
        found[name]['ratio'] = spread(self.ratios(name))
    return found

  def lines(self, batch_size: int) -> list[str]:
    """The table for people."""
    unit = {'per_second': 'images/s', 'per_core_second': 'images/core-s'}[self.measure]
    heading = ['', 'ms/batch', 'images/s', 'quartiles', 'images/core-s', 'quartiles']
    rows = [(*heading, f'ours/peer in {unit}', 'quartiles')]
    for name, found in self.contestants().items():
      milliseconds = 1000 * batch_size / found['per_second']['median']
      speeds = [_cells(found[measure]) for measure in ('per_second', 'per_core_second')]
      ratio = _cells(found['ratio'], '.3f') if 'ratio' in found else ('', '')
      rows.append(
        (self.facts[name]['title'], f'{milliseconds:,.1f}', *speeds[0], *speeds[1], *ratio)
      )
    return aligned(rows)


def start(
  contestants: dict[str, Contestant], stack: contextlib.ExitStack, **arguments
) -> tuple[dict[str, Worker], dict[str, str]]:
  """Starts the processes of contestants, until `stack` ends.

  Returns:
    (workers, absent): the workers by name, and why the others cannot take part.
  """
  workers, absent = {}, {}
  for name, contestant in contestants.items():
    try:
      workers[name] = stack.enter_context(contestant.start(**arguments))
    except Unavailable as reason:
      absent[name] = str(reason)
  return workers, absent


def take_turns(workers: dict[str, Worker], options: Options, measure: str = 'per_second') -> Turns:
  """Lets the contestants work in turn, there and back again, so that a drift favors none."""
  facts = {}
  for name, worker in workers.items():
    seconds = worker.call('prepare', options.turn_seconds)
    title = worker.contestant.title
    facts[name] = {
      'title': title,
      'settings': worker.contestant.settings,
      'first_batch_seconds': seconds,
    }
    say(f'{title}: first batch after {seconds:.1f} s')
  samples: dict[str, list[Sample]] = {name: [] for name in workers}
  for number in range(options.rounds):
    say(f'round {number + 1} of {options.rounds}')
    for name in list(workers)[:: -1 if number % 2 else 1]:
      samples[name].append(workers[name].call('measure'))
  for name, worker in workers.items():
    facts[name]['versions'] = worker.call('versions')
  return Turns(samples, facts, measure)


def say(line: str) -> None:
  """Tells what is going on, apart from the results."""
  Console().message(line)


def spread(values: list[float]) -> dict[str, float]:
  """Median and quartiles."""
  if len(values) == 1:
    values = values * 2
  low, median, high = statistics.quantiles(values, n=4, method='inclusive')
  return {'median': median, 'lower_quartile': low, 'upper_quartile': high}


def seconds_table(seconds: dict[str, list[float]]) -> tuple[str, ...]:
  """Lines of a table of how long single things took, each time that they were timed."""
  rows = [('', 'median s', 'quartiles', 'worst', 'times')]
  for name, times in seconds.items():
    rows.append((name, *_cells(spread(times), '.3f'), f'{max(times):.3f}', str(len(times))))
  return tuple(aligned(rows))


def _cells(values: dict[str, float], form: str = '') -> tuple[str, str]:
  form = form or (',.0f' if values['median'] >= 100 else '.2f')
  low, high = values['lower_quartile'], values['upper_quartile']
  return format(values['median'], form), f'{low:{form}} - {high:{form}}'
