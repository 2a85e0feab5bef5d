"""Versions and hardware, recorded with every result."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = (
  *('alexnet_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'),
  *('tensorflow-datasets', 'ml-collections', 'absl-py', 'numpy'),
)


def environment(devices) -> dict[str, Any]:
  """Date, hardware and versions, recorded with every result."""
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'hardware': f'{devices.global_count} x {devices.platform} ({devices.kind})',
    'processor': cpu_info().get('model name') or platform.processor() or platform.machine(),
    'cores': usable_cores(),
    'processes': devices.process_count,
    'python': platform.python_version(),
    'versions': {name: version for name in _PACKAGES if (version := _version(name))},
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:  # optional
    return None


def usable_cores() -> int:
  """Cores this process may run on; all of them where the system does not say (macOS)."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_info() -> dict[str, str]:
  """/proc/cpuinfo of the first core, such as {'flags': 'fpu sse ...'}; {} without Linux."""
  try:
    core = Path('/proc/cpuinfo').read_text(encoding='utf-8').partition('\n\n')[0]
  except OSError:
    return {}
  return {
    name.strip(): value.strip()
    for name, _, value in (line.partition(':') for line in core.splitlines())
  }
