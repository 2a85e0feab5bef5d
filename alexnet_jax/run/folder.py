"""The folder of a run: whose it is, what it runs on, and whether it is finished."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax import files
from alexnet_jax.errors import DiskFailed, UserError
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.run.preprocessing_file import write_preprocessing
from alexnet_jax.runtime.cores import usable_cores

CONFIG = 'config.json'
ENVIRONMENT = 'env.json'
RESULTS = 'results.json'
CHANGES = 'changes.jsonl'
LOCK = '.lock'
_PACKAGES = (
  'alexnet_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'tensorflow-datasets',
  'ml-collections',
  'absl-py',
  'numpy',
)


def check_workdir(
  workdir: Path, config: ml_collections.ConfigDict, command: str, allowed: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
  """Compares a config with that of the run in the folder, if there is one.

  Args:
    workdir: folder of a run, or to be.
    config: what is about to run there.
    command: how the user started it.
    allowed: fields that may have changed although that alters the run.

  Returns:
    The changes, {field: (old, new)}.

  Raises:
    UserError: the folder holds a run with another config.
  """
  for name in allowed:
    if name not in configs.FIELDS:
      raise UserError(f'--allow_change={name}: not a field: {configs.nearest(name)}')
  if not (workdir / CONFIG).exists():
    return {}
  # Through a config and back: fields that are newer than the run get their defaults.
  old = configs.to_json(read_config(workdir))
  changes = configs.diff(old, configs.to_json(config))
  refused = [
    path
    for path, (before, now) in changes.items()
    if configs.alters_run(path, before, now, config)
    and (
      path in configs.FIXED
      or not any(path == name or path.startswith(f'{name}.') for name in allowed)
    )
  ]
  if refused:
    shown = ', '.join(f'{path}: {changes[path][0]} -> {changes[path][1]}' for path in refused)
    fixed = [path for path in refused if path in configs.FIXED]
    ways = (
      f'{", ".join(fixed)} cannot change, for a step would be another part of an epoch; resume it'
      ' with its own config,'
      if fixed
      else f'resume it with its own config, accept this with --allow_change={",".join(refused)},'
    )
    raise UserError(
      f'{workdir} holds a run with another config ({shown}); {ways} or start this one elsewhere:'
      f' {with_workdir(command, free_workdir(workdir))}'
    )
  return changes


def claim_workdir(
  workdir: Path,
  config: ml_collections.ConfigDict,
  preprocessing: Preprocessing,
  devices,
  changes: Mapping[str, tuple[Any, Any]] = types.MappingProxyType({}),
) -> None:
  """Notes in the folder whose it is: config.json, env.json, preprocessing.npz, changes.jsonl.

  With the preprocessing, which has the data's mean and deviations, the folder can be used without
  the data; changes are added to those of before.

  Raises:
    UserError: it cannot be written.
  """
  with _written(workdir):
    if changes:
      date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      with open(workdir / CHANGES, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'date': date, 'changes': changes}) + '\n')
      (workdir / RESULTS).unlink(missing_ok=True)  # they are of the run as it was
    files.write_json(workdir / CONFIG, configs.to_json(config))
    files.write_json(workdir / ENVIRONMENT, environment(devices))
    write_preprocessing(workdir, preprocessing)


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """Makes the folder if need be and holds it, so that two runs never write to the same.

  The lock ends with the process, however that ends.

  Raises:
    UserError: another run holds it, or it cannot be written.
  """
  with _written(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f'{workdir} is in use by {file.read().strip() or "another process"}: wait for it, stop it,'
        ' or choose another --workdir'
      ) from None
    except OSError:  # a file system without locks
      pass
    file.truncate(0)
    file.write(f'process {os.getpid()} on {platform.node()}')
    file.flush()
    yield


@contextlib.contextmanager
def disk_failures(workdir: Path) -> Iterator[None]:
  """Turns what a disk or link that goes away makes of a run into DiskFailed, which is one line."""
  try:
    yield
  except (TimeoutError, ConnectionError):  # of other processes
    raise
  except OSError as error:
    reason = f'{error.filename}: {error.strerror}' if error.filename else error.strerror or error
    if not workdir.is_dir():
      reason = f'{workdir} is gone'
    raise DiskFailed(
      f'{reason}; what was saved is in {workdir}: once it can be written again, the same command'
      ' goes on from there'
    ) from error


@contextlib.contextmanager
def _written(workdir: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error.strerror}): choose another --workdir'
    ) from None


def with_workdir(command: str, workdir: Path) -> str:
  """The command with another --workdir."""
  words, rest = [], iter(shlex.split(command))
  for word in rest:
    name, equals, _ = word.partition('=')
    if name not in ('--workdir', '-workdir'):
      words.append(word)
    elif not equals:
      next(rest, None)
  return shlex.join([*words, f'--workdir={workdir}'])


def free_workdir(workdir: Path) -> Path:
  """The first of workdir-2, workdir-3, ... that does not exist."""
  number = 2
  while (candidate := workdir.with_name(f'{workdir.name}-{number}')).exists():
    number += 1
  return candidate


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of the run in a folder.

  Raises:
    UserError: there is no run, or its config cannot be used.
  """
  if not (workdir / CONFIG).exists():
    raise UserError(f'{workdir} holds no run (no {CONFIG}): give the folder of a run')
  return configs.from_json(read_json(workdir / CONFIG))


def finished_results(workdir: Path) -> dict[str, Any] | None:
  """The results of a finished run, else None."""
  path = workdir / RESULTS
  return read_json(path) if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object; UserError if the file is not one."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(value, dict):
      raise ValueError('not an object')
    return value
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path} is damaged ({error}): restore it from a copy, or move the folder away to start anew'
    ) from None


def environment(devices) -> dict[str, Any]:
  """Versions, hardware and date, to stand beside every number."""
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'hardware': f'{devices.global_count} x {devices.platform} ({devices.kind})',
    'processor': _processor(),
    'cores': usable_cores(),
    'processes': devices.process_count,
    'python': platform.python_version(),
    'versions': {name: version for name in _PACKAGES if (version := _version(name))},
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()
