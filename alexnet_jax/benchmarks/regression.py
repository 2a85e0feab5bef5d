"""Whether something has become slower since an earlier run, told apart from noise.

What is compared is the time of our side in each benchmark that both runs have: seconds a batch, or
seconds of a save or a start.  The rule: a time is slower if

- its median has grown by more than `THRESHOLD`, and
- the quartiles of the two runs lie apart: now the lower one is above the upper one of before, and
- each run has at least `FEWEST` turns,

and faster the other way round.  All else is the same, as far as can be told.  Half of all turns lie
between the quartiles, so this speaks up when at least three quarters of the turns of now are slower
than at least three quarters of those before.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.benchmarks.comparison import OURS, spread
from alexnet_jax.errors import UserError

THRESHOLD = 0.05
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Change:
  """A time now and before.

  Attributes:
    what: benchmark, title and what was timed.
    ratio: of the medians, now over before; above 1 is slower.
    before, now: lower quartile, median and upper quartile in seconds.
    verdict: 'slower', 'faster', 'same', or 'too few turns'.
  """

  what: str
  ratio: float
  before: tuple[float, float, float]
  now: tuple[float, float, float]
  verdict: str


def compare(before: dict, now: dict) -> list[Change]:
  """Compares what two runs of the benchmark command wrote with `--json`.

  Raises:
    UserError: they have nothing in common, or are of different machines.
  """
  old, new = dict(_times(before)), dict(_times(now))
  changes = [_change(what, old[what], new[what]) for what in new if what in old]
  if not changes:
    raise UserError(
      '--compare: the two runs have no benchmark in common: give the same targets, config and'
      f' sizes as {before["command"]!r}'
    )
  machines = [_machine(record) for record in (before, now)]
  if machines[0] != machines[1]:
    raise UserError(
      f'--compare: that was measured on {machines[0]}, this on {machines[1]}: compare runs of one'
      ' machine'
    )
  return changes


def read(file: Path) -> dict:
  """What an earlier run wrote with `--json`.

  Raises:
    UserError: it cannot be read, or is something else.
  """
  try:
    record = json.loads(file.read_text(encoding='utf-8'))
    dict(_times(record)), _machine(record), record['command']
  except OSError as error:
    raise UserError(f'--compare={file} cannot be read: {error.strerror}') from None
  except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
    raise UserError(
      f'--compare={file} is not a file that --json of this command wrote: write one with --json'
    ) from None
  return record


def lines(changes: list[Change]) -> list[tuple[str, ...]]:
  """The changes as cells of a table."""
  shown = [('', 'before s', 'now s', 'now/before', 'verdict')]
  for change in changes:
    shown.append(
      (
        change.what,
        f'{change.before[1]:.4g}',
        f'{change.now[1]:.4g}',
        f'{change.ratio:.3f}',
        change.verdict,
      )
    )
  return shown


def _times(record: dict) -> Iterator[tuple[str, list[float]]]:
  """(what, seconds of each turn) of our side; of a comparison, seconds a batch."""
  for result in record['results']:
    if 'compiled' in result:  # nothing is timed there
      continue
    title = f'{result["target"]}: {result["title"]}'
    if 'durations' in result:
      for name, timed in result['durations'].items():
        yield f'{title}: {name}', [float(seconds) for seconds in timed['all_seconds']]
    else:
      of = {'per_second': 'seconds', 'per_core_second': 'core_seconds'}[result['measure']]
      size = result['batch_size']
      turns = result['sides'][OURS]['samples']
      yield title, [size * turn[of] / turn['images'] for turn in turns]


def _machine(record: dict) -> str:
  environment = record['results'][0]['environment']
  return f'{environment["hardware"]}, {environment["processor"]}, {environment["cores"]} cores'


def _change(what: str, before: list[float], now: list[float]) -> Change:
  old, new = _quartiles(before), _quartiles(now)
  ratio = new[1] / old[1]
  verdict = 'same'
  if min(len(before), len(now)) < FEWEST:
    verdict = 'too few turns'
  elif ratio > 1 + THRESHOLD and new[0] > old[2]:
    verdict = 'slower'
  elif ratio < 1 / (1 + THRESHOLD) and new[2] < old[0]:
    verdict = 'faster'
  return Change(what, ratio, old, new, verdict)


def _quartiles(times: list[float]) -> tuple[float, float, float]:
  values = spread(times)
  return values['lower_quartile'], values['median'], values['upper_quartile']
