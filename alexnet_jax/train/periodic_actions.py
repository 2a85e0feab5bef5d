"""Logging, evaluation and checkpoints at intervals of steps or epochs, and stopping."""

import dataclasses
import math
import time
from pathlib import Path
from typing import NoReturn

import flax

from alexnet_jax.config import to_json
from alexnet_jax.data.store import Store
from alexnet_jax.errors import Diverged, Interrupted
from alexnet_jax.results import scores
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.first_layer import write_first_layer
from alexnet_jax.run.metrics import MetricWriter, NoMetrics, read_metrics
from alexnet_jax.run.predictions import VIEW_NAMES, SplitProbabilities
from alexnet_jax.terminal import Console, Pace
from alexnet_jax.train import processes
from alexnet_jax.train.devices import Devices, to_host
from alexnet_jax.train.evaluation import Evaluator
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.preemption import StopSignal
from alexnet_jax.train.step import TrainState
from alexnet_jax.train.throughput import Throughput, progress_line


@dataclasses.dataclass(eq=False)
class PeriodicActions:
  """Logs, evaluates and saves a run from step `start` on when due, and stops it when asked to.

  Attributes:
    metrics: the writer of metrics.jsonl; does nothing on other processes than the first.
    stop: notes signals within a `with` block.
    evaluation_steps, save_steps: numbers of steps after which that is due.
  """

  experiment: Experiment
  store: Store
  devices: Devices
  checkpoints: Checkpoints
  workdir: Path
  console: Console
  start: int

  def __post_init__(self) -> None:
    config, calendar = self.experiment.config, self.experiment.calendar
    self.evaluator = Evaluator(self.experiment, self.store.eval, self.devices)
    self.predictions: SplitProbabilities | None = None
    self.errors: dict[str, float] = {}  # of the last evaluation
    self.pace = Pace()
    self.primary = self.devices.process_index == 0
    self.stop = StopSignal(quiet=not self.primary)
    self._any_process = processes.AnyProcess(self.devices)
    self.metrics = (
      MetricWriter(self.workdir, start_step=self.start, tensorboard=config.log.tensorboard)
      if self.primary
      else NoMetrics()
    )
    self.evaluation_steps = calendar.every(config.eval.every_epochs)
    self.save_steps = calendar.every(config.checkpoint.every_epochs)
    history = read_metrics(self.workdir)
    errors = [record['eval/top1_error'] for record in history if 'eval/top1_error' in record]
    self.best_error = min(errors, default=math.inf)
    before = max((record.get('seconds', 0.0) for record in history), default=0.0)
    self.began = time.monotonic() - before  # if it had never been stopped
    self.warned_flat = self.start > config.guard.flat_steps

  def is_due(self, step: int) -> bool:
    """Whether the host logs, evaluates or saves after this number of steps."""
    logs = step % self.experiment.config.log.every_steps == 0 or step == self.start + 1
    return logs or self.evaluates_or_saves(step)

  def evaluates_or_saves(self, step: int) -> bool:
    """Whether the state is evaluated or saved after this number of steps."""
    return step in self.evaluation_steps or step in self.save_steps

  def stopping(self) -> bool:
    """Whether any process has been asked to stop; all have to call it after the same steps."""
    return self._any_process(bool(self.stop.requested))

  def evaluate_and_save(self, step: int, state: TrainState, stopping: bool) -> TrainState:
    """Evaluates or saves a replicated state if that is due; returns it with its new `plateau`.

    Raises:
      Interrupted: `stopping`, or asked to stop meanwhile. An evaluation is left to the next start.
    """
    metrics: dict[str, float] = {}
    if step in self.evaluation_steps and not stopping:
      try:
        state, metrics = self.evaluate(step, state)
      except _Stopping:
        stopping = True
    if step in self.save_steps or stopping:
      self.save(step, state, metrics)
    if stopping:
      self.leave(step)
    return state

  def leave(self, step: int) -> NoReturn:
    """Raises Interrupted, once all processes have saved."""
    self.checkpoints.wait()
    saved = not self.primary or step in self.checkpoints.steps()
    processes.shutdown_together('stopping')
    raise Interrupted(
      f'stopped by {self.stop.requested or "another process"} at step {step:,}, which is'
      f' {"saved" if saved else "not saved because the disk is full"}; the same command'
      f' resumes from {"there" if saved else "the last saved step"}'
    )

  def final_predictions(self, state: TrainState) -> SplitProbabilities:
    """Evaluates the last state with config.eval.final_views, if that has not been done yet.

    Raises:
      Interrupted: asked to stop; the state was saved before.
    """
    if self.predictions is None:
      views = self.experiment.config.eval.final_views
      self.console.message(f'evaluating the {VIEW_NAMES[views]}')
      try:
        self.predictions = self._predict(state, views)
      except _Stopping:
        self.leave(self.experiment.calendar.total_steps)
    return self.predictions

  def log(self, step: int, throughput: Throughput) -> None:
    """Writes the metrics since the last line, and checks them.

    Raises:
      Diverged: see `check_finite`.
    """
    config, calendar = self.experiment.config, self.experiment.calendar
    interval = throughput.take()
    scalars = {f'train/{name}': value for name, value in interval.means.items()}
    scalars['learning_rate'] = interval.learning_rate
    scalars['epoch'] = calendar.epoch_of(step)
    scalars['seconds'] = time.monotonic() - self.began
    # The first step includes compilation.
    speed = interval.speed if step > self.start + 1 else {}
    self.metrics.write(step, scalars | speed)
    rate = self.pace.rate(step)  # counts from the first call, after compilation
    line = progress_line(
      calendar, step, interval.means['loss'], errors=self.errors, speed=speed, rate=rate
    )
    self.console.progress(line, step, calendar.total_steps)
    check_finite(interval.nonfinite_steps, step, config)
    if not self.warned_flat and step >= config.guard.flat_steps:
      self.warned_flat = True
      if warning := flat_loss(interval.means['loss'], len(self.experiment.classes), step):
        self.console.message(warning)

  def evaluate(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """Evaluates a state, saves it if it is the best, and updates its `plateau`."""
    config, calendar = self.experiment.config.eval, self.experiment.calendar
    predictions = self._predict(state, config.views)
    if step == calendar.total_steps and config.views == config.final_views:
      self.predictions = predictions  # which `final_predictions` need not repeat
    errors = self.errors = scores.compute_metrics(predictions.probabilities, predictions.label)
    scalars = {f'eval/{name}': value for name, value in errors.items()}
    if self.primary:
      first = self.experiment.table[0].name
      write_first_layer(self.workdir, step, to_host(state.eval_params[first]['kernel']))
    self.metrics.write(step, {'epoch': calendar.epoch_of(step), **scalars})
    self.console.message(
      f'epoch {calendar.epoch_of(step):.2f}: '
      + ', '.join(f'{n} {v:.4f}' for n, v in scalars.items())
      + f' ({len(predictions.label):,} images)'
    )
    if self.experiment.plateau:
      plateau = self.experiment.plateau.after(to_host(state.plateau), errors['top1_error'])
      state = state.replace(plateau=self.devices.replicate(plateau))
    if errors['top1_error'] < self.best_error:
      self.best_error = errors['top1_error']
      self.save(step, state, scalars, kind='best')
    return state, scalars

  def save(
    self, step: int, state: TrainState, metrics: dict[str, float], kind: str = 'last'
  ) -> None:
    """Saves a replicated state with the errors of its evaluation, if there was one."""
    meta = {
      'config': to_json(self.experiment.config),
      'classes': self.experiment.classes,
      'class_names': self.store.class_names,
      'train_images': self.experiment.calendar.examples,
      'metrics': metrics,
    }
    self.checkpoints.save(step, flax.serialization.to_state_dict(state), meta, kind=kind)

  def _predict(self, state: TrainState, views: int) -> SplitProbabilities:
    return self.evaluator.predictions(state.eval_params, state.batch_stats, views, self._check_stop)

  def _check_stop(self, images: int) -> None:
    """Called between the batches of an evaluation."""
    del images
    if self.stopping():
      raise _Stopping


class _Stopping(Exception):
  """Breaks off an evaluation because the run was asked to stop."""


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
