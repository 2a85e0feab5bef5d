"""The folder of a run: whose it is, what it runs on, and whether it is finished."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.results import files

CONFIG = 'config.json'
ENVIRONMENT = 'env.json'
RESULTS = 'results.json'
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


def check_workdir(workdir: Path, config: ml_collections.ConfigDict, command: str) -> None:
  """Raises UserError if the folder holds a run with another config."""
  if not (workdir / CONFIG).exists():
    return
  # Through a config and back: fields that are newer than the run get their defaults.
  old = configs.to_json(configs.from_json(read_json(workdir / CONFIG)))
  changes = configs.diff(old, configs.to_json(config))
  if changes:
    shown = ', '.join(f'{name}: {old} -> {now}' for name, (old, now) in changes.items())
    raise UserError(
      f'{workdir} holds a run with another config ({shown}); resume it with its own config,'
      f' or start this one elsewhere: {with_workdir(command, free_workdir(workdir))}'
    )


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict, devices) -> None:
  """Makes the folder and notes there whose it is: config.json and env.json.

  Raises:
    UserError: it cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / CONFIG, configs.to_json(config))
    files.write_json(workdir / ENVIRONMENT, environment(devices))
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error.strerror}): choose another --workdir'
    ) from None


def with_workdir(command: str, workdir: Path) -> str:
  """The command with another --workdir."""
  words = [word for word in shlex.split(command) if not word.startswith('--workdir')]
  return shlex.join([*words, f'--workdir={workdir}'])


def free_workdir(workdir: Path) -> Path:
  """The first of workdir-2, workdir-3, ... that does not exist."""
  number = 2
  while (candidate := workdir.with_name(f'{workdir.name}-{number}')).exists():
    number += 1
  return candidate


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
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
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
