"""What happened between two console lines, and whether the run was asked to stop."""

import signal
import time

import jax
import numpy as np


class Interval:
  """Collects the metrics of steps without waiting for them, and times them.

  Attributes:
    total_seconds: since the beginning of this process's run.
  """

  def __init__(self, feed):
    """`feed` has `wait_seconds`, the time its consumer has waited so far."""
    self._feed = feed
    self._begin = time.monotonic()
    self._pending = []
    self.restart()

  def restart(self) -> None:
    """Starts the clock anew, after a pause that is not training."""
    self._start = time.monotonic()
    self._wait = self._feed.wait_seconds

  @property
  def total_seconds(self) -> float:
    return time.monotonic() - self._begin

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._pending.append(metrics)

  def take(self) -> tuple[dict[str, float], int, int, float, float]:
    """Waits for the steps added since the last call.

    Returns:
      Means of their metrics (over the applied steps if there are any), non-finite steps in a row
      up to the last, number of steps, seconds, and seconds spent waiting for data.
    """
    metrics = jax.device_get(self._pending)
    self._pending = []
    seconds, wait = time.monotonic() - self._start, self._feed.wait_seconds - self._wait
    self.restart()
    applied = [m for m in metrics if not m['skipped_steps']] or metrics
    means = {name: float(np.mean([m[name] for m in applied])) for name in metrics[0]}
    means['learning_rate'] = float(metrics[-1]['learning_rate'])
    return means, int(metrics[-1]['skipped_steps']), len(metrics), seconds, wait


class StopSignal:
  """Notes SIGTERM, SIGINT or SIGUSR1 so that the loop can save and leave; a second SIGINT kills.

  Attributes:
    requested: the signal's name once one has come, else ''.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

  def __init__(self):
    self.requested = ''

  def __enter__(self) -> 'StopSignal':
    self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
