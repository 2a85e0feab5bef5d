"""Versions and hardware, to stand beside every number."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from alexnet_jax.runtime.cores import usable_cores

_PACKAGES = (
  *('alexnet_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'),
  *('tensorflow-datasets', 'ml-collections', 'absl-py', 'numpy'),
)


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
