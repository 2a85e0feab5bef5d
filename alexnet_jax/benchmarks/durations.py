"""How long single things take, such as a save or a start: medians, worst cases and goals."""

import dataclasses
import statistics
from typing import Any

from alexnet_jax.benchmarks.comparison import aligned, spread


@dataclasses.dataclass(frozen=True)
class Durations:
  """Finished measurements of a target.

  Attributes:
    target, title: which benchmark, and of what.
    seconds: by what was timed, each time it was.
    goals: seconds that the median of some of them should stay below.
    notes: lines that belong under the table.
    environment: hardware, versions and date.
    details: whatever else is worth keeping.
  """

  target: str
  title: str
  seconds: dict[str, list[float]]
  goals: dict[str, float]
  notes: tuple[str, ...]
  environment: dict
  details: dict

  def to_json(self) -> dict[str, Any]:
    """All of it, every single time included, as plain values."""
    timed = {
      name: {'goal': self.goals.get(name), 'seconds': spread(times), 'all_seconds': times}
      for name, times in self.seconds.items()
    }
    kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del kept['seconds'], kept['goals']
    return kept | {'durations': timed}


def table(durations: Durations) -> str:
  """The measurements for people."""
  lines = [('', 'median s', 'quartiles', 'worst', 'times', 'goal')]
  for name, times in durations.seconds.items():
    values = spread(times)
    goal = durations.goals.get(name)
    lines.append(
      (
        name,
        f'{statistics.median(times):.3f}',
        f'{values["lower_quartile"]:.3f} - {values["upper_quartile"]:.3f}',
        f'{max(times):.3f}',
        str(len(times)),
        f'under {goal:g}: {"met" if values["median"] < goal else "missed"}' if goal else '',
      )
    )
  return '\n'.join([f'{durations.target}: {durations.title}', *aligned(lines), *durations.notes])
