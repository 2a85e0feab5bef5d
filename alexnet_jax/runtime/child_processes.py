"""Child processes that do not outlive the process that started them."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_child(
  command: Sequence[str], log: Path, environment: Mapping[str, str], on_parent_death: signal.Signals
) -> subprocess.Popen:
  """Starts a process in a session of its own, which Ctrl-C in the terminal does not reach.

  Args:
    command: the program and its arguments.
    log: file to append its output to.
    environment: variables besides those of this process.
    on_parent_death: what the kernel sends it when this process ends; on Linux only.
  """
  with open(log, 'ab') as file:
    return subprocess.Popen(
      command,
      env=os.environ | environment,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=file,
      start_new_session=True,
      preexec_fn=_signal_on_parent_death(on_parent_death),
    )


def describe_exit(code: int) -> str:
  """How a process with this `Popen.returncode` ended."""
  return f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'


def _signal_on_parent_death(number: signal.Signals) -> Callable[[], None] | None:
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
