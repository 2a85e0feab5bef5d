"""The runs of a sweep: ablations x seeds x values of fields, each a run with its own folder."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax import config_files
from alexnet_jax.errors import UserError
from alexnet_jax.model.ablations import BASELINE
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.folder import RunFolder, read_results


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One run.

  Attributes:
    name: `<ablation>/seed<k>[/<field>=<value>,...]`, also its folder in that of the sweep.
    workdir: that folder.
    config: validated.
    words: arguments of `alexnet_jax.main`.
  """

  name: str
  workdir: Path
  config: ml_collections.ConfigDict
  words: tuple[str, ...]

  def command(self, python: str = 'python') -> list[str]:
    return [python, '-m', 'alexnet_jax.main', *self.words]

  @property
  def finished(self) -> bool:
    return read_results(self.workdir) is not None


def plan_runs(
  config_words: Sequence[str],
  changes: Sequence[str],
  seeds: Sequence[int],
  grid: Sequence[tuple[str, Sequence[str]]],
  workdir: Path,
) -> list[PlannedRun]:
  """All runs of a sweep; starts none.

  Args:
    config_words: `--config=...` and `--config.*` as for `alexnet_jax.main`, already checked.
    changes: ablations: a name, several joined by "+", or "baseline" for none.
    seeds: of the runs.
    grid: (field, its values as on the command line).
    workdir: folder of the sweep.

  Raises:
    UserError: an ablation, field or value that is wrong, or a folder that holds another run.
  """
  found = []
  values = [[(field, value) for value in given] for field, given in grid]
  # Seeds outermost: a sweep that is stopped early has every ablation with the first seeds.
  for seed, change, point in itertools.product(seeds, changes, itertools.product(*values)):
    names = [] if change == BASELINE else change.split('+')
    parts = [change, f'seed{seed}']
    if point:
      shown = ','.join(f'{field}={value}' for field, value in point)
      parts.append(re.sub(r'[^\w.=,+-]', '_', shown))
    words = [*config_words, f'--config.seed={seed}']
    words += [f'--config.{field}={value}' for field, value in point]
    config, typed = config_files.parse(words)
    config = config_files.apply_ablations(config, names, typed)
    if names:
      words.append(f'--ablation={",".join(names)}')
    folder = workdir.joinpath(*parts)
    words.append(f'--workdir={folder}')
    found.append(PlannedRun('/'.join(parts), folder, config, tuple(words)))
  _check(found)
  return found


def parse_grid(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
  """['optimizer.learning_rate=0.01,0.02'] -> [('optimizer.learning_rate', ['0.01', '0.02'])].

  Commas within brackets or quotes belong to a value: `optimizer.schedule.milestones=(8.0,),(5.0,)`.
  """
  grid: list[tuple[str, list[str]]] = []
  for text in texts:
    field, equals, values = text.partition('=')
    field = field.removeprefix('config.')
    configs.find_field(field, '--grid=')
    if field == 'seed' or field in [other for other, _ in grid]:
      raise UserError(f'--grid={text}: give each field once, and seeds as --seeds')
    split = re.findall(r'(?:\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|"[^"]*"|\'[^\']*\'|[^,])+', values)
    if not equals or not split or len(set(split)) < len(split):
      raise UserError(f'--grid={text}: must be FIELD=VALUE,VALUE,... with different values')
    grid.append((field, split))
  return grid


def parse_seeds(words: Sequence[str]) -> list[int]:
  """['3'] -> [0, 1, 2]; ['3', '5'] -> [3, 5]."""
  try:
    seeds = [int(word) for word in words]
  except ValueError:
    seeds = []
  if len(seeds) == 1 and seeds[0] > 0:
    return list(range(seeds[0]))
  if len(seeds) > 1 and min(seeds) >= 0 and len(set(seeds)) == len(seeds):
    return seeds
  raise UserError(
    f'--seeds={",".join(words)}: must be how many, such as 3, or which, such as 0,4,7'
  )


def _check(found: Sequence[PlannedRun]) -> None:
  """Raises UserError if two runs share a folder, or one's folder is another run's."""
  folders = [run.workdir for run in found]
  for run in found:
    if folders.count(run.workdir) > 1:
      raise UserError(f'{run.name} occurs twice in this sweep: give each change once')
    if RunFolder(run.workdir).config.exists():
      old = configs.to_json(read_run_config(run.workdir))
      if changes := configs.diff(old, configs.to_json(run.config)):
        shown = ', '.join(f'{field}: {old} -> {new}' for field, (old, new) in changes.items())
        raise UserError(
          f'{run.workdir} holds a run with another config ({shown}): give this sweep another'
          ' --workdir'
        )
