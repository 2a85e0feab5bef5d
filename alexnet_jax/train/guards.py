"""Checks on the training loss: diverged, or stuck at that of guessing."""

import math

from alexnet_jax.errors import Diverged


def check_finite(nonfinite_steps: int, step: int, config) -> None:
  """Raises Diverged after config.guard.max_nonfinite_steps consecutive non-finite steps."""
  if nonfinite_steps >= config.guard.max_nonfinite_steps:
    raise Diverged(
      f'{nonfinite_steps} steps in a row up to step {step:,} had a loss or gradient that is not'
      ' finite; none was applied. Check that labels and input.normalization fit the net, try'
      ' --config.model.compute_dtype=float32, or go back to the last saved step with a lower'
      ' rate: the same command with --config.optimizer.learning_rate='
      f'{config.optimizer.learning_rate / 2:g} --allow_change=optimizer.learning_rate'
    )


def flat_loss(loss: float, classes: int, step: int) -> str:
  """A warning if the loss is within 1 % of ln(classes), that of guessing, else ''."""
  chance = math.log(classes)
  if abs(loss - chance) >= 0.01 * chance:
    return ''
  return (
    f'warning: the loss is still {loss:.3f}, that of guessing (ln {classes} = {chance:.3f}), after'
    f' {step:,} steps. Usual causes: initial weights too small (the "paper", "caffe" and "caffenet"'
    ' nets stay flat for long), inputs scaled to [0, 1] or unit variance where the net expects'
    ' 0-255, biases of 1 with small weights, shuffled labels'
  )
