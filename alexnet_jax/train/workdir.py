"""The folder of a run: whose it is, what it runs on, and whether it is finished."""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import platform
import shlex
import zipfile
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.results import files
from alexnet_jax.train.augment import Preprocessing

CONFIG = 'config.json'
ENVIRONMENT = 'env.json'
RESULTS = 'results.json'
PREPROCESSING = 'preprocessing.npz'
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
  old = configs.to_json(read_config(workdir))
  changes = configs.diff(old, configs.to_json(config))
  if changes:
    shown = ', '.join(f'{name}: {old} -> {now}' for name, (old, now) in changes.items())
    raise UserError(
      f'{workdir} holds a run with another config ({shown}); resume it with its own config,'
      f' or start this one elsewhere: {with_workdir(command, free_workdir(workdir))}'
    )


def claim_workdir(
  workdir: Path, config: ml_collections.ConfigDict, preprocessing: Preprocessing, devices
) -> None:
  """Makes the folder and notes there whose it is: config.json, env.json and preprocessing.npz.

  With the last, which has the data's mean and deviations, the folder can be used without the data.

  Raises:
    UserError: it cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / CONFIG, configs.to_json(config))
    files.write_json(workdir / ENVIRONMENT, environment(devices))
    _write_preprocessing(workdir / PREPROCESSING, preprocessing)
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error.strerror}): choose another --workdir'
    ) from None


def _write_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
  buffer = io.BytesIO()
  fields = dataclasses.fields(preprocessing)
  np.savez(buffer, **{field.name: getattr(preprocessing, field.name) for field in fields})
  files.write_bytes(path, buffer.getvalue())


def read_preprocessing(workdir: Path) -> Preprocessing | None:
  """The preprocessing that a run keeps; None in a folder of a version that kept none.

  Raises:
    UserError: the file is damaged.
  """
  path = workdir / PREPROCESSING
  if not path.exists():
    return None
  try:
    # From memory, since np.load leaves a damaged file open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
      values = {field.name: saved[field.name] for field in dataclasses.fields(Preprocessing)}
    preprocessing = Preprocessing(
      **{name: array if array.ndim else array.item() for name, array in values.items()}
    )
    crop, mean = preprocessing.crop, preprocessing.mean
    if np.shape(mean) not in ((3,), (crop, crop, 3)) or np.shape(preprocessing.scale) != (3,):
      raise ValueError(f'a mean of shape {np.shape(mean)} for views of {crop} pixels')
    return preprocessing
  except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is damaged ({error}): restore it from a copy') from None


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


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of the run in a folder.

  Raises:
    UserError: there is no run, or its config cannot be used.
  """
  if not (workdir / CONFIG).exists():
    raise UserError(f'{workdir} holds no run: there is no {CONFIG}')
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
