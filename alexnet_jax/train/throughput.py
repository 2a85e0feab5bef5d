"""What happened between two console lines."""

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

  def add(self, metrics: dict[str, jax.Array], steps: int) -> None:
    """Metrics of so many steps: scalars of a single one, else arrays that begin with theirs."""
    self._pending.append((metrics, steps))

  def take(self) -> tuple[dict[str, float], int, int, float, float]:
    """Waits for the steps added since the last call.

    Returns:
      Means of their metrics (over the applied steps if there are any), non-finite steps in a row
      up to the last, number of steps, seconds, and seconds spent waiting for data.
    """
    calls = jax.device_get(self._pending)
    self._pending = []
    metrics = {
      name: np.concatenate([np.ravel(metrics[name])[:steps] for metrics, steps in calls])
      for name in calls[0][0]
    }
    seconds, wait = time.monotonic() - self._start, self._feed.wait_seconds - self._wait
    self.restart()
    skipped = metrics['nonfinite_steps']
    applied = skipped == 0 if (skipped == 0).any() else np.full(len(skipped), True)
    means = {name: float(np.mean(values[applied])) for name, values in metrics.items()}
    means['learning_rate'] = float(metrics['learning_rate'][-1])
    return means, int(skipped[-1]), len(skipped), seconds, wait
