"""The optional modes of training: which of them a config asks for, and the program they make.

Each mode is a file of its own that replaces a part of the plain program of `loop.make_program`:
`sharded_dense.py` (model.shard_dense), `grad_accum.py` (grad_accum_steps) and `multi_step.py`
(steps_per_call). They can be combined.
"""

import dataclasses

from alexnet_jax.data.store import Split
from alexnet_jax.train import multi_step
from alexnet_jax.train.devices import Devices
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.grad_accum import accumulate
from alexnet_jax.train.sharded_dense import DenseSharding, check_sharded, sharded_layers
from alexnet_jax.train.step import Program, TrainState, make_compute_gradients, make_train_step


def any_mode(config) -> bool:
  """Whether a config asks for an optional mode."""
  return config.model.shard_dense or config.grad_accum_steps > 1 or config.steps_per_call > 1


def check(config, split: Split, devices: Devices) -> None:
  """Raises UserError if a mode that the config asks for is impossible with these devices."""
  if config.model.shard_dense:
    check_sharded(config, devices)
  if config.steps_per_call > 1:
    multi_step.check_memory(config, split, devices)


def add_modes(
  plain: Program, experiment: Experiment, devices: Devices, split: Split | None, state: TrainState
) -> Program:
  """Adds the modes that the config asks for to a plain program; arguments as `make_program`'s."""
  config = experiment.config
  sharding = DenseSharding(devices, state, _sharded_layers(experiment, devices))
  recipe = sharding.recipe(experiment.recipe)
  compute_gradients = make_compute_gradients(sharding.model(experiment.model), recipe)
  if config.grad_accum_steps > 1:
    compute_gradients = accumulate(compute_gradients, config.grad_accum_steps)
  step = make_train_step(recipe, compute_gradients, sharding.pmean, sharding.global_norm)
  if config.steps_per_call > 1:
    step = multi_step.make_train_steps(step)
  train_step = devices.pmap(
    step,
    in_axes=(sharding.state_axes, 0),
    out_axes=(sharding.state_axes, None),
    donate_argnums=0,
    cache=not experiment.model.onednn,
  )
  program = sharding.program(dataclasses.replace(plain, train_step=train_step))
  if config.steps_per_call > 1:
    assert split is not None
    return multi_step.add_examples(program, config, devices, split)
  return program


def notes(experiment: Experiment, devices: Devices) -> list[str]:
  """What the console says about the modes of a run."""
  config, lines = experiment.config, []
  if config.steps_per_call > 1 and devices.platform == 'cpu':
    lines.append(multi_step.SLOW_LOOPS.format(config.steps_per_call))
  if names := _sharded_layers(experiment, devices):
    lines.append(f'dense layers sharded over {devices.global_count} devices: {", ".join(names)}')
  return lines


def _sharded_layers(experiment: Experiment, devices: Devices) -> tuple[str, ...]:
  if not experiment.config.model.shard_dense:
    return ()
  return sharded_layers(experiment.table, devices.global_count)
