"""What a run says while it goes on."""

import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from alexnet_jax.terminal import Console, Pace, duration


class TrainingConsole(Console):
  """Messages, and a line of progress, here broken in two:

  `epoch 12.4/90  step 15,500/112,500  loss 3.21  val 51.2/26.9`
  `  8,140 img/s  (data 0.4%)  ETA 3h12m`

  `val` is the top-1 / top-5 error in percent of the last evaluation of this process.
  """

  def __init__(
    self,
    total_steps: int,
    epochs: float,
    *,
    log: str | os.PathLike | None = None,
    quiet: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens the log.

    Args:
      total_steps: The step at which the run ends.
      epochs: The epochs that this is.
      log, quiet, stream: As those of `Console`; one process of a job speaks for all.
      clock: A function that returns seconds; tests pass their own.
    """
    super().__init__(log=log, quiet=quiet, stream=stream)
    self._total_steps = total_steps
    self._epochs = epochs
    self._validation = ''
    self._pace = Pace(clock)

  def update(
    self,
    step: int,
    *,
    epoch: float,
    loss: float,
    images_per_second: float | None = None,
    data_wait: float | None = None,
  ) -> None:
    """Shows where the run is.

    Args:
      step: Steps done.
      epoch: Epochs done, with a fraction.
      loss: The training loss now.
      images_per_second: The speed now, without pauses.
      data_wait: The share of the time, in [0, 1], that the devices waited for images.
    """
    facts = [
      f'epoch {epoch:.1f}/{self._epochs:g}',
      f'step {step:,}/{self._total_steps:,}',
      # Three digits that count, without jumping about: 6.91, 0.084.
      f'loss {loss:.3f}' if abs(loss) < 1 else f'loss {loss:.2f}',
      self._validation,
    ]
    if images_per_second is not None:
      facts.append(f'{images_per_second:,.{0 if images_per_second >= 10 else 1}f} img/s')
    if data_wait is not None:
      facts.append(f'(data {data_wait:.1%})')
    if rate := self._pace.rate(step):  # counts from the first call, after compilation
      facts.append(f'ETA {duration((self._total_steps - step) / rate)}')
    self.progress('  '.join(filter(None, facts)), step, self._total_steps)

  def evaluation(self, scalars: Mapping[str, float]) -> None:
    """Keeps the result of an evaluation for the lines that follow.

    Args:
      scalars: `eval/top1_error` and, with more than five classes, `eval/top5_error`: shares in
        [0, 1]. Other names are ignored.
    """
    errors = (scalars.get('eval/top1_error'), scalars.get('eval/top5_error'))
    self._validation = 'val ' + '/'.join(f'{100 * e:.1f}' for e in errors if e is not None)

  def restart_pace(self) -> None:
    """Forgets how fast the steps were, after a time in which the process was suspended."""
    self._pace.restart()
