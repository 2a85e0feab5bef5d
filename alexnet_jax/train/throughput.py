"""Mean metrics and speed of the steps between two console lines, and such a line."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.data.feed import Batches
from alexnet_jax.terminal import duration
from alexnet_jax.train.schedules import Calendar


class IntervalMetrics(NamedTuple):
  """What the steps since the last call of `Throughput.take` came to."""

  means: dict[str, float]  # over the applied steps, if any
  learning_rate: float  # of the last step
  nonfinite_steps: int  # consecutive ones, up to the last step
  speed: dict[str, float]  # images_per_second, and data_wait: share of the time, in [0, 1]


class Throughput:
  """Collects the metrics of steps without waiting for the devices, and times the steps."""

  def __init__(self, batches: Batches, batch_size: int, start: int):
    """Starts the clock.

    Args:
      batches: of the run; their `wait_seconds` is the time that steps waited for data.
      batch_size: images of a step, over all devices.
      start: cumulative step count before the first call.
    """
    self._batches = batches
    self._batch_size = batch_size
    self._step = start
    self._pending: list[tuple[dict[str, jax.Array], int]] = []
    self.restart()

  def restart(self) -> None:
    """Restarts the clock, after an evaluation or a save."""
    self._start = time.monotonic()
    self._wait = self._batches.wait_seconds

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Adds the metrics of one call of the training step, without waiting for them.

    Args:
      step: cumulative step count at the end of the call.
      metrics: scalars; with several steps in a call, arrays of at least as many numbers.
    """
    self._pending.append((metrics, step - self._step))
    self._step = step

  def take(self) -> IntervalMetrics:
    """Waits for the steps added since the last call, and sums them up."""
    calls = jax.device_get(self._pending)
    self._pending = []
    metrics = {
      name: np.concatenate([np.ravel(metrics[name])[:steps] for metrics, steps in calls])
      for name in calls[0][0]
    }
    seconds, wait = time.monotonic() - self._start, self._batches.wait_seconds - self._wait
    self.restart()
    rates, skipped = metrics.pop('learning_rate'), metrics.pop('nonfinite_steps')
    applied = skipped == 0 if (skipped == 0).any() else np.full(len(skipped), True)
    means = {name: float(np.mean(values[applied])) for name, values in metrics.items()}
    images = len(skipped) * self._batch_size
    speed = {'images_per_second': images / seconds, 'data_wait': wait / seconds}
    return IntervalMetrics(means, float(rates[-1]), int(skipped[-1]), speed)


def progress_line(
  calendar: Calendar,
  step: int,
  loss: float,
  *,
  errors: Mapping[str, float],
  speed: Mapping[str, float],
  rate: float | None,
) -> str:
  """One line, such as `epoch 12.4/90  step 15,500/112,500  loss 3.21  val 51.2/26.9  ETA 3h12m`.

  Args:
    calendar: of the run.
    step: steps done.
    loss: mean training loss of the last steps.
    errors: top1_error and top5_error of the last evaluation, fractions; {} before the first.
    speed: `IntervalMetrics.speed`; {} if not known.
    rate: steps a second, evaluations included, for the ETA; None if not known.
  """
  parts = [
    f'epoch {calendar.epoch_of(step):.1f}/{calendar.epochs:g}',
    f'step {step:,}/{calendar.total_steps:,}',
    # Three digits that count, without jumping about: 6.91, 0.084.
    f'loss {loss:.3f}' if abs(loss) < 1 else f'loss {loss:.2f}',
  ]
  if errors:
    shown = [errors[name] for name in ('top1_error', 'top5_error') if name in errors]
    parts.append('val ' + '/'.join(f'{100 * error:.1f}' for error in shown))
  if speed:
    images = speed['images_per_second']
    parts.append(f'{images:,.{0 if images >= 10 else 1}f} img/s')
    parts.append(f'(data {speed["data_wait"]:.1%})')
  if rate:
    parts.append(f'ETA {duration((calendar.total_steps - step) / rate)}')
  return '  '.join(parts)
