"""The story of a run, from a config to its results."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import flax
import ml_collections
import numpy as np

from alexnet_jax import files
from alexnet_jax.config import to_json
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.errors import Diverged, Interrupted, UserError
from alexnet_jax.results import scores
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.claim import check_workdir, claim_workdir
from alexnet_jax.run.folder import RunFolder, disk_failures, lock_workdir, read_results
from alexnet_jax.run.metrics import MetricWriter, NoMetrics, read_metrics
from alexnet_jax.run.predictions import VIEW_NAMES, SplitProbabilities
from alexnet_jax.runtime.deterministic import promise
from alexnet_jax.runtime.environment import environment
from alexnet_jax.train import processes
from alexnet_jax.train.console import TrainingConsole
from alexnet_jax.train.devices import AXIS, Devices, to_host
from alexnet_jax.train.evaluation import Evaluator
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.multi_step import calls, check_room, prepare_calls
from alexnet_jax.train.preemption import StopSignal
from alexnet_jax.train.step import TrainState
from alexnet_jax.train.summary import class_table, draw_figures, finish, summary
from alexnet_jax.train.throughput import Interval

if TYPE_CHECKING:  # what is passed in comes from a room below
  from alexnet_jax.model.pretrained import Pretrained

# github.com/jax-ml/jax/issues/12868
_SLOW_LOOPS = (
  'warning: steps_per_call={} is for GPUs that wait for their host; on a CPU XLA takes up to a'
  ' hundred times as long for convolutions within a loop: 1 is faster here'
)
_SHOWN_CLASSES = 20  # lines of the table of classes; results.json has all


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  command: str,
  allowed: Sequence[str] = (),
  weights: 'Pretrained | None' = None,
) -> dict:
  """Trains, evaluates, saves and draws; goes on where an earlier call stopped.

  Args:
    config: validated.
    workdir: folder of this run; made if need be.
    command: how the user started the run, for messages and results.json.
    allowed: fields that may differ from those the run was begun with.
    weights: what config.weights names; None if it names nothing.

  Returns:
    What results.json holds; of several processes only the first need know.

  Raises:
    UserError: the workdir is another run's, the data is missing or does not fit.
    Diverged: too many non-finite steps in a row.
    Interrupted: stopped by a signal, after saving.
    DiskFailed: the workdir went away.
  """
  folder, devices = RunFolder(workdir), Devices()
  primary = devices.process_index == 0
  devices.check_training_batch(config, begun=folder.config.exists())
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  devices.dense_shards(config)  # raises before data are prepared
  changes = check_workdir(workdir, config, command, allowed)
  results = None if changes else read_results(workdir)
  if processes.from_first(np.array(results is not None)):
    if results:
      print(f'{workdir} is finished:\n{summary(results, workdir)}')
    processes.shutdown_together('finished')
    return results or {}

  # Data, net, recipe.
  store = prepare_store(config.data)
  processes.check_same(config=to_json(config), store=store.meta)
  check_room(config, store.train, devices)
  experiment = make_experiment(config, store, AXIS, weights, devices.platform)
  calendar = experiment.calendar

  with contextlib.ExitStack() as stack:
    stack.enter_context(disk_failures(workdir))
    if primary:
      stack.enter_context(lock_workdir(workdir))
      claim_workdir(workdir, config, experiment.recipe.preprocessing, devices, changes)

    # State: the newest good checkpoint, or the beginning.
    checkpoints = Checkpoints(
      folder.checkpoints, keep=config.checkpoint.max_to_keep, primary=primary
    )
    stack.callback(checkpoints.close)
    start, evaluated, state = resume(checkpoints, experiment)
    console = stack.enter_context(
      TrainingConsole(
        calendar.total_steps,
        config.epochs,
        log=folder.log if primary else None,
        quiet=not primary,
      )
    )
    console.message(promise(devices.platform, config.deterministic))
    if devices.platform == 'cpu' and config.steps_per_call > 1:
      console.message(_SLOW_LOOPS.format(config.steps_per_call))
    for path, (old, new) in changes.items():
      console.message(f'changed since the run began: {path}: {old} -> {new}')
    if start:
      console.message(f'resuming from step {start:,} (epoch {calendar.epoch_of(start):.2f})')
    elif weights is not None:
      console.message(starting_point(experiment))
    run = Run(experiment, store, devices, checkpoints, workdir, console, start)
    stack.callback(run.metrics.close)
    with run.stop:
      state = run.steps(state, evaluated)
      checkpoints.wait()
      run.metrics.close()
      predictions = run.final_predictions(state)
    if primary:  # the others' workdir may be a disk of its own, with no records
      results = finish(experiment, store, state, predictions, workdir)
      results |= {'command': command, **environment(devices)}
      files.write_json(folder.results, results)
      for failure in draw_figures(experiment, store, state, predictions, workdir):
        console.message(f'warning: {failure}')
      if 'classes' in results:
        worst = [tuple(row.values()) for row in results['classes'][:_SHOWN_CLASSES]]
        console.message(class_table(worst) + '\n')
      console.message(summary(results, workdir))
    processes.shutdown_together('the end of the run')
  return results


def resume(checkpoints: Checkpoints, experiment: Experiment) -> tuple[int, bool, TrainState]:
  """The step to go on from, whether it is evaluated, and its host state: those of process 0.

  Raises:
    UserError: all checkpoints are damaged, or the training data are not those of before.
  """
  state = to_host(experiment.initial_state())
  start = np.array([0, 0])
  if checkpoints.primary and (
    found := checkpoints.restore(flax.serialization.to_state_dict(state))
  ):
    step, tree, meta = found
    _check_same_data(meta, experiment)
    start = np.array([step, bool(meta.get('metrics'))])
    state = flax.serialization.from_state_dict(state, tree)
  step, evaluated = map(int, processes.from_first(start))
  return step, bool(evaluated), processes.from_first(state) if step else state


def _check_same_data(meta: dict, experiment: Experiment) -> None:
  """Raises UserError if a checkpoint is of other classes or has other epochs."""
  now = {'training images': experiment.calendar.examples, 'classes': list(experiment.classes)}
  before = {'training images': meta['train_images'], 'classes': meta['classes']}
  for what, value in now.items():
    if before[what] != value:
      numbers = '' if what == 'classes' else f' ({before[what]:,} then, {value:,} now)'
      raise UserError(
        f'this run was begun with other {what}{numbers}: put the data back as they were, or choose'
        ' another --workdir'
      )


def starting_point(experiment: Experiment) -> str:
  """What the run starts from, for people."""
  weights, new = experiment.weights, experiment.new_layer
  return f'starting from {weights.source}' + (
    f'; {new} is new, for {len(experiment.classes):,} classes in place of'
    f' {len(weights.classes):,} others'
    if new
    else ', with its classes'
  )


class Run:
  """The loop over steps and what happens at its milestones."""

  def __init__(self, experiment: Experiment, store, devices, checkpoints, workdir, console, start):
    self.experiment = experiment
    self.store = store
    self.devices = devices
    self.checkpoints = checkpoints
    self.workdir = workdir
    self.console = console
    self.start = start
    config, calendar = experiment.config, experiment.calendar
    self.evaluate = Evaluator(experiment, store.eval, devices)
    self.predictions: SplitProbabilities | None = None  # of the last state
    self.primary = devices.process_index == 0
    self.stop = StopSignal(quiet=not self.primary)
    self.agreed = processes.Agreement(devices)
    self.metrics = (
      MetricWriter(workdir, start_step=start, tensorboard=config.log.tensorboard)
      if self.primary
      else NoMetrics()
    )
    self.evaluation_steps = calendar.every(config.eval.every_epochs)
    self.save_steps = calendar.every(config.checkpoint.every_epochs)
    history = [r for r in read_metrics(workdir) if 'eval/top1_error' in r]
    self.best_error = min((r['eval/top1_error'] for r in history), default=math.inf)
    self.seconds_before = max((r.get('seconds', 0.0) for r in read_metrics(workdir)), default=0.0)
    self.warned_flat = start > config.guard.flat_steps

  def steps(self, state: TrainState, evaluated: bool) -> TrainState:
    """Runs from a host state to the end; returns the last state, whole on every device.

    Args:
      state: to go on from.
      evaluated: whether it was; a run that stops leaves that for later.

    Raises:
      Interrupted: asked to stop; the state is saved.
    """
    total = self.experiment.calendar.total_steps
    batches, train, layout = prepare_calls(
      self.experiment, self.store.train, self.devices, self.start, self.calls(), state
    )
    state = layout.put(state)
    if layout.sharded:
      self.console.message(
        f'layers spread over {self.devices.global_count} devices: {", ".join(layout.sharded)}'
      )
    interval = Interval(batches)
    with batches:
      if self.start in self.evaluation_steps and not evaluated:
        state = state.replace(plateau=self.pause(self.start, layout.whole(state), False))
      if self.start < total:
        self.console.message('compiling the training step')
      interval.restart()
      for call, batch in zip(self.calls(), self.devices.stream(batches), strict=False):
        state, metrics = train(state, batch)
        interval.add(metrics, len(call))
        step = call.stop
        stopping = self.agreed(bool(self.stop.requested))
        pause = step in self.evaluation_steps or step in self.save_steps or stopping
        if pause or self.is_milestone(step):
          self.log(step, interval)
        if pause:
          plateau = self.pause(step, layout.whole(state), stopping)
          state = state.replace(plateau=plateau)
          interval.restart()
    return layout.whole(state)

  def pause(self, step: int, whole: TrainState, stopping: bool) -> dict:
    """Evaluates and saves what is due; returns what a plateau schedule made of it.

    Raises:
      Interrupted: asked to stop; an evaluation that is not complete waits for the next start.
    """
    metrics = {}
    if step in self.evaluation_steps and not stopping:
      try:
        whole, metrics = self.evaluation(step, whole)
      except _Stopping:
        stopping = True
    if step in self.save_steps or stopping:
      self.save(step, whole, metrics)
    if stopping:
      self.leave(step)
    return whole.plateau

  def leave(self, step: int) -> None:
    """Ends a run that was asked to stop.

    Raises:
      Interrupted: always.
    """
    self.checkpoints.wait()
    saved = not self.primary or step in self.checkpoints.steps()
    processes.shutdown_together('stopping')
    raise Interrupted(
      f'stopped by {self.stop.requested or "another process"} at step {step:,}, which is'
      f' {"saved" if saved else "not saved for want of room"}; the same command goes on from'
      f' {"there" if saved else "the last that is"}'
    )

  def final_predictions(self, state: TrainState) -> SplitProbabilities:
    """Those of the last state, whole on every device, with the run's final views.

    Raises:
      Interrupted: asked to stop; the state was saved before.
    """
    if self.predictions is None:
      self.console.message(f'evaluating the {VIEW_NAMES[self.experiment.config.eval.final_views]}')
      try:
        self.predictions = self._predict(state)
      except _Stopping:
        self.leave(self.experiment.calendar.total_steps)
    return self.predictions

  def calls(self) -> Iterator[range]:
    """The steps that are left, in ranges that are made without the host."""
    total, most = self.experiment.calendar.total_steps, self.experiment.config.steps_per_call
    return calls(self.start, total, most, self.is_milestone)

  def is_milestone(self, step: int) -> bool:
    """Whether something happens on the host when so many steps are made."""
    due = step % self.experiment.config.log.every_steps == 0 or step == self.start + 1
    return due or step in self.evaluation_steps or step in self.save_steps

  def log(self, step: int, interval: 'Interval') -> None:
    """Writes what happened since the last line, and watches over it."""
    config, calendar = self.experiment.config, self.experiment.calendar
    means, skipped, steps, seconds, wait = interval.take()
    scalars = {f'train/{name}': means[name] for name in ('loss', 'top1_error', 'gradient_norm')}
    scalars['learning_rate'] = means['learning_rate']
    scalars['epoch'] = calendar.epoch_of(step)
    scalars['seconds'] = self.seconds_before + interval.total_seconds
    speed = None
    if self.stop.was_suspended():
      self.console.restart_pace()
    elif step > self.start + 1:  # the first step includes compilation
      speed = steps * config.batch_size / seconds
      scalars.update({'images_per_second': speed, 'data_wait': wait / seconds})
    self.metrics.write(step, scalars)
    self.console.update(
      step,
      epoch=scalars['epoch'],
      loss=means['loss'],
      images_per_second=speed,
      data_wait=None if speed is None else wait / seconds,
    )
    if skipped >= config.guard.max_nonfinite_steps:
      self.metrics.close()
      raise Diverged(
        f'{skipped} steps in a row up to step {step:,} had a loss or gradient that is not finite;'
        ' none was applied. Check that labels and input.normalization fit the net, try'
        ' --config.model.compute_dtype=float32, or go back to the last saved step with a lower'
        f' rate: the same command with --config.optimizer.learning_rate={_lower(config)}'
        ' --allow_change=optimizer.learning_rate'
      )
    self._watch_flat_loss(step, means['loss'])

  def _watch_flat_loss(self, step: int, loss: float) -> None:
    chance = math.log(len(self.experiment.classes))
    if self.warned_flat or step < self.experiment.config.guard.flat_steps:
      return
    self.warned_flat = True
    if abs(loss - chance) < 0.01 * chance:
      self.console.message(
        f'warning: the loss is still {loss:.3f}, that of guessing (ln {math.exp(chance):.0f} ='
        f' {chance:.3f}), after {step:,} steps. Usual causes: initial weights too small (the'
        ' "paper", "caffe" and "caffenet" nets stay flat for long), inputs scaled to [0, 1] or'
        ' unit variance where the net expects 0-255, biases of 1 with small weights, shuffled'
        ' labels'
      )

  def evaluation(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """Evaluates, keeps the best state, and lets a plateau schedule act; returns the errors too."""
    config, total = self.experiment.config.eval, self.experiment.calendar.total_steps
    if step == total and config.views == config.final_views:  # once will do
      self.predictions = self._predict(state)
      results = scores.errors(self.predictions.probabilities, self.predictions.label)
      results['count'] = len(self.predictions.label)
    else:
      place = (state.eval_params, state.batch_stats, config.views)
      results = self.evaluate(*place, self._check_stop)
    scalars = {f'eval/{name}': value for name, value in results.items() if name != 'count'}
    self.metrics.write(step, {'epoch': self.experiment.calendar.epoch_of(step), **scalars})
    self.console.evaluation(scalars)
    self.console.message(
      f'epoch {self.experiment.calendar.epoch_of(step):.2f}: '
      + ', '.join(f'{n} {v:.4f}' for n, v in scalars.items())
      + f' ({results["count"]:,} images)'
    )
    if self.experiment.plateau:
      plateau = self.experiment.plateau.after(to_host(state.plateau), results['top1_error'])
      state = state.replace(plateau=self.devices.replicate(plateau))
    if results['top1_error'] < self.best_error:
      self.best_error = results['top1_error']
      self.save(step, state, scalars, kind='best')
    return state, scalars

  def save(
    self, step: int, state: TrainState, metrics: dict[str, float], kind: str = 'last'
  ) -> None:
    """Saves a state with the errors that it was evaluated to have, if it was."""
    meta = {
      'config': to_json(self.experiment.config),
      'classes': self.experiment.classes,
      'class_names': self.store.class_names,
      'train_images': self.experiment.calendar.examples,
      'metrics': metrics,
    }
    self.checkpoints.save(step, flax.serialization.to_state_dict(state), meta, kind=kind)

  def _predict(self, state: TrainState) -> SplitProbabilities:
    views = self.experiment.config.eval.final_views
    place = (state.eval_params, state.batch_stats, views)
    return self.evaluate.predictions(*place, self._check_stop)

  def _check_stop(self, images: int) -> None:
    """Called between the batches of an evaluation."""
    del images
    if self.agreed(bool(self.stop.requested)):
      raise _Stopping


class _Stopping(Exception):
  """An evaluation is broken off because the run was asked to stop."""


def _lower(config: ml_collections.ConfigDict) -> str:
  return f'{config.optimizer.learning_rate / 2:g}'
