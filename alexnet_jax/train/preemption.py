"""Signals that ask a run to stop, such as a scheduler's SIGTERM or Ctrl-C."""

import contextlib
import os
import signal


class StopSignal:
  """Notes a request to stop, so that the loop can save and leave; a second SIGINT kills.

  Signals that the process ignores, such as SIGHUP under nohup, stay ignored.

  Attributes:
    requested: the name of the first signal once one has come, else ''.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

  def __init__(self, quiet: bool = False):
    """To be used in a `with` block; `quiet` does not print that a signal has come."""
    self.requested = ''
    self._quiet = quiet

  def __enter__(self) -> 'StopSignal':
    numbers = [n for n in self._SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    self._previous = {number: signal.signal(number, self._note) for number in numbers}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    if not self.requested and not self._quiet:
      name = signal.Signals(number).name
      # Not `print`: the signal may have come in the middle of another one.
      with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f'\n{name}: stopping once the state is saved; Ctrl-C leaves at once\n'.encode())
    self.requested = self.requested or signal.Signals(number).name
