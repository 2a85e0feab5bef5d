"""Learning rates as pure functions of the step, one for every parameter.

In 2012 they were changed by hand on validation error: biases and weights at different times, and
single layers were slowed and frozen (CHM layers/layer-params-145.cfg; run4.sh).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import order


@dataclasses.dataclass(frozen=True)
class Calendar:
  """Converts between epochs and steps of a run with `examples` training images."""

  examples: int
  batch_size: int
  epochs: float

  def step_of(self, epoch: float) -> int:
    """The number of steps after which an epoch, or fraction of one, has passed; rounded up."""
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


# step -> multiple of the initial rate
Curve = Callable[[jax.Array], jax.Array]


def piecewise(boundaries: list[int], values: list[float]) -> Curve:
  """values[0] before boundaries[0], values[i] from boundaries[i - 1] on."""
  edges, table = np.asarray(boundaries, np.int32), np.asarray(values, np.float32)
  return lambda step: jnp.asarray(table)[jnp.sum(step >= jnp.asarray(edges))]


def with_warmup(curve: Curve, warmup_steps: int, start: float = 0.0, power: float = 1.0) -> Curve:
  """Replaces the first steps of a curve by a rise to 1.

  By default it is linear (Goyal et al., arXiv 1706.02677).  With power 2 it is `rampup_lr` of
  NVIDIA's Caffe (sgd_solver.cpp, `GetLearningRate`).

  Args:
    curve: of the steps after the warm-up.
    warmup_steps: length of the rise.
    start: value at step 0; 0 means (1 / warmup_steps)**power, so that no step has a rate of 0.
    power: 1 for linear, 2 for quadratic.
  """
  if not warmup_steps:
    return curve
  first = 0 if start else 1

  def warmed(step):
    rise = start + (1 - start) * ((step + first) / warmup_steps) ** power
    return jnp.where(step < warmup_steps, rise, curve(step))

  return warmed


def drops(schedule, calendar: Calendar) -> tuple[list[int], float]:
  """The steps at which a config's schedule multiplies the rate, and the factor.

  `step` drops at its milestones (paper section 5: by ten, three times). `exponential` is
  `dexp[base; tgtFactor; numSteps]` of cuda-convnet2 (#170): `levels` equal shares of the run with
  equal ratios, from 1 to 1 / target_factor.
  """
  match schedule.kind:
    case 'step':
      return [calendar.step_of(epoch) for epoch in schedule.milestones], schedule.factor
    case 'exponential':
      total, levels = calendar.total_steps, schedule.levels
      ratio = schedule.target_factor ** (-1 / max(levels - 1, 1))
      return [math.ceil(total * i / levels) for i in range(1, levels)], ratio
  return [], 1.0


def make_curve(schedule, calendar: Calendar) -> Curve:
  """The curve that a config's `optimizer.schedule` (or `bias_schedule`) describes.

  That of `plateau` is constant: its factor is part of the state, see `Plateau`.
  """
  total = calendar.total_steps
  match schedule.kind:
    case 'cosine':  # half of one, from 1 to 0 (Loshchilov & Hutter, arXiv 1608.03983)
      return lambda step: 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step / total, 1)))
    case 'polynomial':  # the share of the run that is left, to a power (Caffe's `poly` policy)
      return lambda step: jnp.maximum(1 - step / total, 0) ** schedule.power
  boundaries, factor = drops(schedule, calendar)
  return piecewise(boundaries, [factor**i for i in range(len(boundaries) + 1)])


@dataclasses.dataclass(frozen=True)
class Rates:
  """The learning rate of every parameter at a step.

  Attributes:
    kernel, bias: step -> rate of kernels and of biases, before the factors of `layers`.
    layers: extra factors, such as of 'conv1' for all parameters of that layer or 'conv1/kernel' for
      one. Those of a parameter and of its layer multiply; 0 freezes.
    plateau_of_biases: whether the scale of a plateau schedule acts on biases too.
  """

  kernel: Curve
  bias: Curve
  layers: dict[str, Curve] = dataclasses.field(default_factory=dict)
  plateau_of_biases: bool = True

  def per_parameter(self, params: dict, step: jax.Array, scale: jax.Array) -> dict:
    """{layer: {parameter: rate}}, float32 scalars; `scale` is the state of a plateau schedule."""
    kernel_rate, bias_rate = scale * self.kernel(step), self.bias(step)
    if self.plateau_of_biases:
      bias_rate = scale * bias_rate

    def factor(name: str) -> jax.Array:
      return self.layers[name](step) if name in self.layers else jnp.float32(1)

    return {
      layer: {
        name: (kernel_rate if name == 'kernel' else bias_rate)
        * factor(layer)
        * factor(f'{layer}/{name}')
        for name in leaves
      }
      for layer, leaves in params.items()
    }


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Multiplies the rate by `factor` when validation error stops falling (paper section 5, by hand).

  It does so after `patience` evaluations without a new best.
  """

  factor: float
  patience: int

  @staticmethod
  def initial() -> dict[str, np.generic]:
    return {'scale': np.float32(1), 'best': np.float32(np.inf), 'waited': np.int32(0)}

  def after(self, state: dict, error: float) -> dict[str, np.generic]:
    """The state after an evaluation that found `error`."""
    if error < state['best']:
      return {**state, 'best': np.float32(error), 'waited': np.int32(0)}
    waited = int(state['waited']) + 1
    if waited < self.patience:
      return {**state, 'waited': np.int32(waited)}
    return {**state, 'scale': np.float32(state['scale'] * self.factor), 'waited': np.int32(0)}


def initial_rate(config) -> float:
  """The rate of kernels before any schedule: `learning_rate`, scaled from `base_batch_size`."""
  optimizer = config.optimizer
  base = optimizer.base_batch_size or config.batch_size
  return optimizer.learning_rate * (config.batch_size / base)


def make_rates(config, calendar: Calendar) -> Rates:
  """The rates that config.optimizer describes."""
  optimizer, first = config.optimizer, initial_rate(config)

  def curve(schedule, rate: float) -> Curve:
    factor = with_warmup(
      make_curve(schedule, calendar),
      calendar.step_of(optimizer.warmup_epochs),
      optimizer.warmup_start / first,
      optimizer.warmup_power,
    )
    return lambda step: rate * factor(step)

  def layer_curve(changes) -> Curve:
    edges = [calendar.step_of(epoch) for epoch, _ in changes]
    return piecewise(edges, [1.0, *(factor for _, factor in changes)])

  same = optimizer.bias_schedule.kind == 'same'
  bias_schedule = optimizer.schedule if same else optimizer.bias_schedule
  return Rates(
    kernel=curve(optimizer.schedule, first),
    bias=curve(bias_schedule, first * optimizer.bias_lr_multiplier),
    layers={name: layer_curve(changes) for name, changes in optimizer.layer_lr_factors.items()},
    plateau_of_biases=same,
  )
