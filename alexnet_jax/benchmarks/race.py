"""Contestants take turns at the same work, for medians, quartiles and ratios of their speed."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.benchmarks.worker import Contestant, Unavailable, Worker, start_worker
from alexnet_jax.benchmarks.workload import Sample
from alexnet_jax.terminal import Console, aligned

OURS = 'alexnet_jax'


@dataclasses.dataclass(frozen=True)
class Options:
  """How to measure.

  Attributes:
    rounds: turns of each contestant, or number of saves.
    turn_seconds: about how long a turn lasts.
    peers: names of those to compare with; None for all.
    pythons: other interpreters to run our training step in.
    profile: folder for traces, or None.
    num_images: how many to feed.
    topology, topology_timeout: what to compile for, and seconds that a compilation may take.
  """

  rounds: int
  turn_seconds: float
  peers: Sequence[str] | None
  pythons: Sequence[str] = ()
  profile: Path | None = None
  num_images: int = 8192
  topology: str = 'v5e:2x4'
  topology_timeout: float = 1200.0

  def wanted(self, peers: dict[str, Contestant]) -> dict[str, Contestant]:
    return {name: peers[name] for name in peers if self.peers is None or name in self.peers}


@dataclasses.dataclass(frozen=True)
class Result:
  """Result of a benchmark; `dataclasses.asdict` of it is written as JSON.

  Attributes:
    target, title: which benchmark, and what it measured.
    lines: of the table, and notes below it.
    environment: hardware, versions and date.
    details: more values.
    contestants: what `take_turns` returns.
    absent: why some peers were not measured, by name.
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


def race(
  contestants: dict[str, Contestant], options: Options, measure: str = 'per_second', **arguments
) -> dict[str, Any]:
  """Starts contestants, `OURS` first, and lets them take turns.

  Args:
    contestants, options, measure: see `take_turns`.
    arguments: of the contestants' classes.

  Returns:
    `contestants`, `absent` and `environment` of a `Result`.
  """
  workers, absent = {}, {}
  with contextlib.ExitStack() as stack:
    for name, contestant in contestants.items():
      try:
        workers[name] = stack.enter_context(start_worker(contestant, **arguments))
      except Unavailable as reason:
        absent[name] = str(reason)
    found = take_turns(workers, options, measure)
    environment = workers[OURS].call('environment')
  return {'contestants': found, 'absent': absent, 'environment': environment}


def take_turns(
  workers: dict[str, Worker], options: Options, measure: str = 'per_second'
) -> dict[str, dict[str, Any]]:
  """Measures the contestants in turn, every other round in reverse, so that a drift favors none.

  Args:
    workers: by name, `OURS` first.
    options: how to measure.
    measure: the property of `Sample` that ratios are taken of.

  Returns:
    For each: title, settings, its `Workload.info`, and `speeds`.
  """
  console = Console()
  for worker in workers.values():
    console.message(f'{worker.contestant.title}: compiling')
    worker.call('prepare', options.turn_seconds)
  samples: dict[str, list[Sample]] = {name: [] for name in workers}
  for number in range(options.rounds):
    console.message(f'round {number + 1} of {options.rounds}')
    for name in list(workers)[:: -1 if number % 2 else 1]:
      samples[name].append(workers[name].call('measure'))
  return {
    name: {
      'title': worker.contestant.title,
      'settings': worker.contestant.settings,
      **worker.call('info'),
      **speeds(samples[name], samples[OURS], measure),
    }
    for name, worker in workers.items()
  }


def speeds(samples: list[Sample], ours: list[Sample], measure: str) -> dict[str, Any]:
  """The turns of a contestant, their medians and quartiles, and those of ours over them.

  Ratios are taken round by round, so that what slows both cancels.
  """
  ratios = [getattr(a, measure) / getattr(b, measure) for a, b in zip(ours, samples, strict=True)]
  return {
    'per_second': spread([sample.per_second for sample in samples]),
    'per_core_second': spread([sample.per_core_second for sample in samples]),
    'samples': [sample._asdict() for sample in samples],
    **({} if samples is ours else {'ratio': spread(ratios)}),
  }


def speed_table(
  contestants: dict[str, dict], batch_size: int, measure: str = 'per_second'
) -> list[str]:
  """What `take_turns` returns, as the lines of a table."""
  unit = {'per_second': 'images/s', 'per_core_second': 'images/core-s'}[measure]
  heading = ['', 'ms/batch', 'images/s', 'quartiles', 'images/core-s', 'quartiles']
  rows = [(*heading, f'ours/peer in {unit}', 'quartiles')]
  for found in contestants.values():
    milliseconds = f'{1000 * batch_size / found["per_second"]["median"]:,.1f}'
    speed = (*_cells(found['per_second']), *_cells(found['per_core_second']))
    ratio = _cells(found['ratio'], '.3f') if 'ratio' in found else ('', '')
    rows.append((found['title'], milliseconds, *speed, *ratio))
  return aligned(rows)


def spread(values: list[float]) -> dict[str, float]:
  """Median and quartiles."""
  low, median, high = np.percentile(values, (25, 50, 75)).tolist()
  return {'median': median, 'lower_quartile': low, 'upper_quartile': high}


def _cells(values: dict[str, float], form: str = '') -> tuple[str, str]:
  form = form or (',.0f' if values['median'] >= 100 else '.2f')
  low, high = values['lower_quartile'], values['upper_quartile']
  return format(values['median'], form), f'{low:{form}} - {high:{form}}'
