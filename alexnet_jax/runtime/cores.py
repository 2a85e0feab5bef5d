"""How many cores this process may use."""

import os


def usable_cores() -> int:
  """Cores this process may run on; all of them where the system does not say (macOS)."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
