"""Epochs in steps."""

import dataclasses

from alexnet_jax.data import order


@dataclasses.dataclass(frozen=True)
class Calendar:
  """When things happen: a milestone is the first step that starts at or after its epoch.

  Attributes:
    examples: training images.
    batch_size: images per step.
    epochs: length of the run.
  """

  examples: int
  batch_size: int
  epochs: float

  def step_of(self, epoch: float) -> int:
    return order.steps_in(epoch, self.examples, self.batch_size)

  def epoch_of(self, step: int) -> float:
    return step * self.batch_size / self.examples

  @property
  def total_steps(self) -> int:
    return self.step_of(self.epochs)

  def every(self, epochs: float) -> set[int]:
    """The steps at the end of each run of `epochs` epochs, and the last step of all."""
    steps = {self.step_of(k * epochs) for k in range(1, int(self.epochs / epochs) + 1)}
    return {step for step in steps if 0 < step < self.total_steps} | {self.total_steps}
