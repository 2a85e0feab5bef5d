"""Training, from a config to its results."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import flax
import ml_collections
import numpy as np

from alexnet_jax.config import to_json
from alexnet_jax.data import feed
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.claim import check_workdir, claim_workdir
from alexnet_jax.run.folder import RunFolder, disk_failures, lock_workdir, read_results
from alexnet_jax.runtime.environment import environment
from alexnet_jax.runtime.jax_setup import resume_note
from alexnet_jax.terminal import Console
from alexnet_jax.train import modes, processes
from alexnet_jax.train.devices import (
  Devices,
  check_batch_size,
  check_training_batch,
  pmean,
  to_host,
)
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.finish import finish, results_table
from alexnet_jax.train.periodic_actions import PeriodicActions
from alexnet_jax.train.step import Program, TrainState, make_compute_gradients, make_train_step
from alexnet_jax.train.throughput import Throughput


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  command: str,
  allowed: Sequence[str] = (),
  weights: Pretrained | None = None,
) -> dict:
  """Trains, evaluates, saves and draws figures, or resumes where an earlier call stopped.

  Args:
    config: validated.
    workdir: folder of the run; created if it does not exist.
    command: how the user started the run, for results.json.
    allowed: fields of --allow_change.
    weights: the net that config.weights names; None if it names none.

  Returns:
    The content of results.json; {} on all processes but the first.

  Raises:
    UserError: the workdir belongs to another run, or the data is missing or does not fit.
    Diverged: too many consecutive non-finite steps.
    Interrupted: stopped by a signal, after saving.
    DiskFailed: the workdir cannot be written any more.
  """
  folder, devices = RunFolder(workdir), Devices()
  primary = devices.process_index == 0
  check_training_batch(config, devices, begun=folder.config.exists())
  check_batch_size('eval.batch_size', config.eval.batch_size, devices)
  changes = check_workdir(workdir, config, allowed)
  results = None if changes else read_results(workdir)
  if processes.from_first(np.array(results is not None)):
    if results:
      print(f'{workdir} is finished:\n{results_table(results, workdir)}')
    processes.shutdown_together('finished')
    return results or {}

  # The data, and all that is computed with it.
  store = prepare_store(config.data)
  processes.check_agreement(config=to_json(config), store=store.meta)
  experiment = make_experiment(config, store, devices.platform, weights)
  notes = modes.check(experiment, store.train, devices)
  calendar = experiment.calendar

  with contextlib.ExitStack() as stack:
    stack.enter_context(disk_failures(workdir))
    if primary:
      stack.enter_context(lock_workdir(workdir))
      claim_workdir(workdir, config, experiment.recipe.preprocessing, devices, changes)

    # The newest intact checkpoint, or the initial state.
    checkpoints = Checkpoints(
      folder.checkpoints, keep=config.checkpoint.max_to_keep, primary=primary
    )
    stack.callback(checkpoints.close)
    start, evaluated, state = resume(checkpoints, experiment)
    log = folder.log if primary else None
    console = stack.enter_context(Console(log=log, quiet=not primary))
    console.message(resume_note(devices.platform, config.deterministic))
    for note in notes:
      console.message(note)
    for path, (old, new) in changes.items():
      console.message(f'changed since the run began: {path}: {old} -> {new}')
    if start:
      console.message(f'resuming from step {start:,} (epoch {calendar.epoch_of(start):.2f})')
    elif weights is not None:
      layer, count = experiment.new_layer, f'{len(experiment.classes):,} classes'
      new = f'; {layer} starts at random, for {count} instead of {len(weights.classes):,}'
      console.message(f'starting from {weights.source}{new if layer else ", with its classes"}')

    if start < calendar.total_steps:
      console.message('compiling the training step')
    actions = PeriodicActions(experiment, store, devices, checkpoints, workdir, console, start)
    stack.callback(actions.metrics.close)
    with actions.stop:
      if start in actions.evaluation_steps and not evaluated:
        state = actions.evaluate_and_save(start, devices.replicate(state), stopping=False)
      state = train_steps(experiment, store.train, devices, actions, start, state)
      checkpoints.wait()
      actions.metrics.close()
      predictions = actions.final_predictions(state)
    results = {}
    if primary:  # the workdir of another process may be on a disk of its own, without metrics
      origin = {'command': command, **environment(devices)}
      results = finish(experiment, store, state, predictions, workdir, origin, console)
    processes.shutdown_together('the end of the run')
  return results


def make_program(
  experiment: Experiment, devices: Devices, split: Split | None, state: TrainState
) -> Program:
  """The training step over all devices, and the batches that it takes.

  Args:
    split: the training images; None if no batches will be asked for.
    state: any replicated state of the run, or its shapes; only its structure matters.
  """
  config, model, recipe = experiment.config, experiment.model, experiment.recipe
  compute_gradients = make_compute_gradients(model, recipe)
  train_step = devices.pmap(
    make_train_step(recipe, compute_gradients, pmean),
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
    cache=not model.onednn,
  )

  def make_batches(start: int, end: int, _):  # the host sees the state after every step
    assert split is not None
    return range(start + 1, end + 1), feed.train_batches(
      split,
      seed=config.seed,
      start_step=start,
      batch_size=config.batch_size,
      process_index=devices.process_index,
      process_count=devices.process_count,
    )

  program = Program(train_step, make_batches)
  if modes.any_mode(config):
    return modes.add_modes(program, experiment, devices, split, state)
  return program


def train_steps(
  experiment: Experiment,
  split: Split,
  devices: Devices,
  actions: PeriodicActions,
  start: int,
  state: TrainState,
) -> TrainState:
  """Trains a state from step `start`; returns the last one, replicated.

  Raises:
    Interrupted: asked to stop; the state is saved.
  """
  state = devices.replicate(state)
  program = make_program(experiment, devices, split, state)
  steps, batches = program.make_batches(start, experiment.calendar.total_steps, actions.is_due)
  throughput = Throughput(batches, experiment.config.batch_size, start)
  with batches:
    for step, batch in zip(steps, devices.stream(batches), strict=False):  # batches never end
      state, metrics = program.train_step(state, batch)  # pmapped: see make_program
      throughput.add(step, metrics)
      stopping = actions.stopping()
      if actions.is_due(step) or stopping:
        actions.log(step, throughput)
      if actions.evaluates_or_saves(step) or stopping:  # so is the last step
        state = actions.evaluate_and_save(step, program.replicated(state), stopping)
        throughput.restart()
  return state


def resume(checkpoints: Checkpoints, experiment: Experiment) -> tuple[int, bool, TrainState]:
  """Returns the newest step, whether it has been evaluated, and its state on the host.

  They are the same on every process; step 0 and the initial state if there is no checkpoint.

  Raises:
    UserError: all checkpoints are damaged, or the training data has changed.
  """
  state = to_host(experiment.initial_state())
  start = np.array([0, 0])
  if checkpoints.primary and (
    found := checkpoints.restore(flax.serialization.to_state_dict(state))
  ):
    step, tree, meta = found
    then, now = meta['train_images'], experiment.calendar.examples
    if then != now or meta['classes'] != list(experiment.classes):
      raise UserError(
        f'the data has other images or classes than when this run began ({then:,} training images'
        f' then, {now:,} now): restore it, or choose another --workdir'
      )
    start = np.array([step, bool(meta.get('metrics'))])
    state = flax.serialization.from_state_dict(state, tree)
  step, evaluated = map(int, processes.from_first(start))
  return step, bool(evaluated), processes.from_first(state) if step else state
