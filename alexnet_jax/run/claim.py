"""The config of the run in a folder, and which changes of it are allowed on resume."""

import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.preprocessing_file import write_preprocessing
from alexnet_jax.runtime.environment import environment

_COUNTS_STEPS = 'checkpoints count steps, and this changes the steps of an epoch'


def read_run_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of the run in a folder.

  Raises:
    UserError: there is no run, or its config is damaged.
  """
  path = RunFolder(workdir).config
  if not path.exists():
    raise UserError(f'{workdir} holds no run (no {path.name}): give the folder of a run')
  return configs.from_json(files.read_json(path))


def check_workdir(
  workdir: Path, config: ml_collections.ConfigDict, allowed: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
  """Compares a config with that of the run in the folder, if there is one.

  Returns:
    The changes, {field: (old, new)}. Those that alter the run are in `allowed`, of --allow_change.

  Raises:
    UserError: the folder holds a run with another config.
  """
  check_allowed(config, allowed)
  if not RunFolder(workdir).config.exists():
    return {}
  old = configs.to_json(read_run_config(workdir))
  changes = configs.diff(old, configs.to_json(config))
  altering = [path for path, change in changes.items() if alters_run(path, *change, config)]
  fixed = [path for path in altering if configs.find_field(path).alters_epochs]
  accepted = [p for p in altering if any(f'{p}.'.startswith(f'{name}.') for name in allowed)]
  if refused := [path for path in altering if path in fixed or path not in accepted]:
    shown = ', '.join(f'{path}: {changes[path][0]} -> {changes[path][1]}' for path in refused)
    ways = (
      f'{", ".join(fixed)} cannot change: {_COUNTS_STEPS}; resume it with its own config,'
      if fixed
      else f'resume it with its own config, accept this with --allow_change={",".join(refused)},'
    )
    copies = (workdir.with_name(f'{workdir.name}-{number}') for number in itertools.count(2))
    free = next(path for path in copies if not path.exists())
    raise UserError(
      f'{workdir} holds a run with another config ({shown}); {ways} or start a new run with'
      f' --workdir={free}'
    )
  return changes


def check_allowed(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
  """Raises UserError if --allow_change names no field, or one for which it has no effect."""
  for name in names:
    field = configs.find_field(name, '--allow_change=')
    reason = configs.unused_reason(config, name)
    reason = reason and f'is {reason}'
    if not field.alters_run:
      reason = 'may change without it, since it does not alter the run'
    if field.alters_epochs:
      reason = f'cannot change: {_COUNTS_STEPS}'
    if reason:
      raise UserError(f'--allow_change={name}: {name} {reason}; leave it out')


def alters_run(path: str, old: Any, new: Any, config: ml_collections.ConfigDict) -> bool:
  """Whether the training done so far would have been different with the new value of a field.

  More epochs alter it only if the rate's schedule spans the whole run. A field without effect in
  the new `config` does not: the field that disabled it does.
  """
  if path == 'epochs':
    kinds = (config.optimizer.schedule.kind, config.optimizer.bias_schedule.kind)
    return new < old or any(kind in configs.SPANNING for kind in kinds)
  return configs.find_field(path).alters_run and not configs.unused_reason(config, path)


def claim_workdir(
  workdir: Path,
  config: ml_collections.ConfigDict,
  preprocessing: Preprocessing,
  devices,
  changes: Mapping[str, tuple[Any, Any]],
) -> None:
  """Writes config.json, env.json, preprocessing.npz and, if there are changes, changes.jsonl.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = RunFolder(workdir)
  with files.one_line_error(f'--workdir={workdir}'):
    if changes:
      date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      with open(folder.changes, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'date': date, 'changes': changes}) + '\n')
      folder.results.unlink(missing_ok=True)  # they are of the run as it was
    files.write_json(folder.config, configs.to_json(config))
    files.write_json(folder.environment, environment(devices))
    write_preprocessing(folder.preprocessing, preprocessing)
