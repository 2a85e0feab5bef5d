"""Child processes that do not outlive the process that started them."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def signal_on_parent_death(number: signal.Signals) -> Callable[[], None] | None:
  """Makes the kernel send a child a signal when the thread that started it ends.

  Returns:
    The `preexec_fn` of `subprocess.Popen`; None where the system is not Linux.
  """
  # Loaded here: a forked child should do little.
  prctl, parent = getattr(ctypes.CDLL(None), 'prctl', None), os.getpid()
  if prctl is None:
    return None

  def prepare():
    prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the call
      os._exit(1)

  return prepare
