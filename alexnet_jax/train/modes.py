"""The optional modes of training, which replace parts of the program of `loop.make_program`.

Each is in a file of its own: `sharded_dense.py` (model.shard_dense), `grad_accum.py`
(grad_accum_steps) and `multi_step.py` (steps_per_call). They can be combined.
"""

import dataclasses

from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers
from alexnet_jax.train import multi_step
from alexnet_jax.train.devices import Devices
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.grad_accum import accumulate
from alexnet_jax.train.sharded_dense import DenseSharding, sharded_layers
from alexnet_jax.train.step import Program, TrainState, make_compute_gradients, make_train_step


def any_mode(config) -> bool:
  """Whether a config asks for an optional mode."""
  return config.model.shard_dense or config.grad_accum_steps > 1 or config.steps_per_call > 1


def check(experiment: Experiment, split: Split, devices: Devices) -> list[str]:
  """Checks the modes that a config asks for, and returns messages about them and bfloat16.

  Raises:
    UserError: one of them is impossible with these devices.
  """
  config, count, notes = experiment.config, devices.global_count, []
  if devices.platform == 'cpu' and config.model.compute_dtype == 'bfloat16':
    notes.append(
      'warning: model.compute_dtype=bfloat16 is for accelerators; a CPU took 1.4 times as long as'
      ' with float32 (docs/performance.md)'
    )
  if config.steps_per_call > 1:
    multi_step.check_memory(config, split, devices)
    if devices.platform == 'cpu':
      # github.com/jax-ml/jax/issues/12868
      notes.append(
        f'warning: steps_per_call={config.steps_per_call} is for GPUs that wait for their host;'
        ' on a CPU XLA takes up to a hundred times as long for convolutions in a loop: use 1 here'
      )
  if config.model.shard_dense and count > 1:
    names = sharded_layers(experiment.table, count)
    if not names:
      dense = [row for row in experiment.table if isinstance(row, layers.Dense)]
      found = ', '.join(f'{row.name} {row.features:,}' for row in dense) or 'there is none'
      raise UserError(
        f'model.shard_dense=True: {count} devices do not divide the outputs of any dense layer'
        f' ({found}): use --config.model.shard_dense=False'
      )
    notes.append(f'dense layers sharded over {count} devices: {", ".join(names)}')
  return notes


def add_modes(
  plain: Program, experiment: Experiment, devices: Devices, split: Split | None, state: TrainState
) -> Program:
  """Replaces the training step of a program by one with the modes that the config asks for.

  Args:
    plain: the program without modes.
    experiment, devices, split, state: as of `loop.make_program`.
  """
  config = experiment.config
  shard = config.model.shard_dense
  names = sharded_layers(experiment.table, devices.global_count) if shard else ()
  sharding = DenseSharding(devices, state, names)
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
