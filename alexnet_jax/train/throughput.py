"""Mean metrics and speed of the steps between two console lines."""

import time
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.data.feed import Batches


class Report(NamedTuple):
  """The steps since the last report."""

  means: dict[str, float]  # over the applied steps, if any; the learning rate of the last step
  nonfinite_steps: int  # consecutive ones, up to the last step
  steps: int
  seconds: float
  data_wait: float  # share of the seconds, in [0, 1], spent waiting for data


class Throughput:
  """Collects the metrics of steps without waiting for the devices, and times them."""

  def __init__(self, batches: Batches, start: int):
    """Takes the feed, whose `wait_seconds` are reported, and the number of steps taken before."""
    self._batches = batches
    self._step = start
    self._began = time.monotonic()
    self._pending: list[tuple[dict[str, jax.Array], int]] = []
    self.restart()

  def restart(self) -> None:
    """Restarts the clock, after a pause that is not training."""
    self._start = time.monotonic()
    self._wait = self._batches.wait_seconds

  @property
  def total_seconds(self) -> float:
    """Seconds since the beginning, pauses included."""
    return time.monotonic() - self._began

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Adds the metrics of the steps up to `step`: scalars, or arrays that begin with theirs."""
    self._pending.append((metrics, step - self._step))
    self._step = step

  def take(self) -> Report:
    """Waits for the steps added since the last call, and reports them."""
    calls = jax.device_get(self._pending)
    self._pending = []
    metrics = {
      name: np.concatenate([np.ravel(metrics[name])[:steps] for metrics, steps in calls])
      for name in calls[0][0]
    }
    seconds, wait = time.monotonic() - self._start, self._batches.wait_seconds - self._wait
    self.restart()
    skipped = metrics['nonfinite_steps']
    applied = skipped == 0 if (skipped == 0).any() else np.full(len(skipped), True)
    means = {name: float(np.mean(values[applied])) for name, values in metrics.items()}
    means['learning_rate'] = float(metrics['learning_rate'][-1])
    return Report(means, int(skipped[-1]), len(skipped), seconds, wait / seconds)
