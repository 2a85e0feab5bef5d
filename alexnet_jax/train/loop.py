"""The story of a run, from a config to its results."""

import math
from pathlib import Path

import flax
import ml_collections
import numpy as np

from alexnet_jax.config import to_json
from alexnet_jax.data.feed import train_batches
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.errors import Diverged, Interrupted
from alexnet_jax.model import layers, nets
from alexnet_jax.results import figures, files, scores
from alexnet_jax.results.console import Console, results_table
from alexnet_jax.results.metrics import MetricWriter, read_metrics
from alexnet_jax.train.checkpoint import Checkpoints
from alexnet_jax.train.evaluation import VIEW_NAMES, Evaluator, write_predictions
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.interval import Interval, StopSignal
from alexnet_jax.train.parallel import AXIS, Devices, to_host
from alexnet_jax.train.step import TrainState, make_train_step
from alexnet_jax.train.workdir import (
  RESULTS,
  check_workdir,
  claim_workdir,
  environment,
  finished_results,
)


def train(config: ml_collections.ConfigDict, workdir: Path, *, command: str) -> dict:
  """Trains, evaluates, saves and draws; goes on where an earlier call stopped.

  Args:
    config: validated.
    workdir: folder of this run; made if need be.
    command: how the user started the run, for messages and results.json.

  Returns:
    What results.json holds.

  Raises:
    UserError: the workdir is another run's, the data is missing or does not fit.
    Diverged: too many non-finite steps in a row.
    Interrupted: stopped by a signal, after saving.
  """
  devices = Devices()
  devices.check_training_batch(config)
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  check_workdir(workdir, config, command)
  if results := finished_results(workdir):
    print(f'{workdir} is finished:\n{results_table(results)}')
    return results

  # Data, net, recipe.
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, AXIS)
  calendar = experiment.calendar
  claim_workdir(workdir, config, devices)

  # State: the newest good checkpoint, or the beginning.
  checkpoints = Checkpoints(
    workdir / 'checkpoints', keep=config.checkpoint.keep, primary=devices.process_index == 0
  )
  state = experiment.initial_state()
  restored = checkpoints.restore(flax.serialization.to_state_dict(state))
  start = 0
  if restored:
    start, tree, _ = restored
    state = flax.serialization.from_state_dict(state, tree)
  state = devices.replicate(to_host(state))

  with Console(calendar.total_steps, config.epochs, start, log=workdir / 'train.log') as console:
    console.message(devices.describe())
    if restored:
      console.message(f'resuming from step {start:,} (epoch {calendar.epoch_of(start):.2f})')
    run = Run(experiment, store, devices, checkpoints, workdir, console, start)
    try:
      state = run.steps(state)
    finally:
      checkpoints.close()
      run.metrics.close()
    results = run.finish(state, command)
    console.message(results_table(results))
  return results


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
    self.metrics = MetricWriter(workdir, start_step=start, tensorboard=config.log.tensorboard)
    self.evaluation_steps = calendar.every(config.eval.every_epochs)
    self.save_steps = calendar.every(config.checkpoint.every_epochs)
    history = [r for r in read_metrics(workdir) if 'eval/top1_error' in r]
    self.best_error = min((r['eval/top1_error'] for r in history), default=math.inf)
    self.seconds_before = max((r.get('seconds', 0.0) for r in read_metrics(workdir)), default=0.0)
    self.warned_flat = start > config.guard.flat_steps

  def steps(self, state: TrainState) -> TrainState:
    """Runs to the end; returns the last state."""
    config, total = self.experiment.config, self.experiment.calendar.total_steps
    train_step = self.devices.train_step(
      make_train_step(self.experiment.model, self.experiment.recipe, AXIS)
    )
    batches = train_batches(
      self.store.train,
      seed=config.seed,
      start_step=self.start,
      batch_size=config.batch_size,
      process_index=self.devices.process_index,
      process_count=self.devices.process_count,
    )
    stop = StopSignal()
    interval = Interval(batches)
    if self.start < total:
      self.console.message('compiling the training step')
    with batches, stop:
      for step, batch in zip(
        range(self.start + 1, total + 1), self.devices.stream(batches), strict=False
      ):
        state, metrics = train_step(state, batch)
        interval.add(metrics)
        pause = step in self.evaluation_steps or step in self.save_steps or stop.requested
        if pause or step % config.log.every_steps == 0 or step == self.start + 1:
          self.log(step, interval)
        if step in self.evaluation_steps:
          state = self.evaluation(step, state)
        if step in self.save_steps or stop.requested:
          self.save(step, state)
        if stop.requested and step < total:
          self.checkpoints.wait()
          raise Interrupted(
            f'stopped by {stop.requested} at step {step:,}, which is saved;'
            ' the same command goes on from there'
          )
        if pause:
          interval.restart()
    return state

  def log(self, step: int, interval: 'Interval') -> None:
    """Writes what happened since the last line, and watches over it."""
    config, calendar = self.experiment.config, self.experiment.calendar
    means, skipped, steps, seconds, wait = interval.take()
    scalars = {f'train/{name}': means[name] for name in ('loss', 'top1_error', 'gradient_norm')}
    scalars['learning_rate'] = means['learning_rate']
    scalars['epoch'] = calendar.epoch_of(step)
    scalars['seconds'] = self.seconds_before + interval.total_seconds
    speed = None
    if step > self.start + 1:  # the first step includes compilation
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
    if skipped >= config.guard.skipped_steps:
      self.metrics.close()
      raise Diverged(
        f'{skipped} steps in a row up to step {step:,} had a loss or gradient that is not finite;'
        ' none was applied. Lower --config.optimizer.learning_rate, check that labels and'
        ' input.normalization fit the net, or try --config.model.compute_dtype=float32'
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

  def evaluation(self, step: int, state: TrainState) -> TrainState:
    """Evaluates, keeps the best state, and lets a plateau schedule act."""
    results = self.evaluate(state.eval_params, state.batch_stats, self.experiment.config.eval.views)
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
      self.save(step, state, kind='best')
    return state

  def save(self, step: int, state: TrainState, kind: str = 'last') -> None:
    meta = {
      'config': to_json(self.experiment.config),
      'classes': self.experiment.classes,
      'top1_error': self.best_error if kind == 'best' else None,
    }
    self.checkpoints.save(step, flax.serialization.to_state_dict(state), meta, kind=kind)

  def finish(self, state: TrainState, command: str) -> dict:
    """Evaluates with the final views, draws the figures and writes results.json."""
    config, workdir = self.experiment.config, self.workdir
    records = read_metrics(workdir)
    last = [r for r in records if 'eval/top1_error' in r][-1]
    results = {name: value for name, value in last.items() if name.startswith('eval/')}
    views = config.eval.final_views
    self.console.message(f'evaluating the {VIEW_NAMES[views]}')
    predictions = self.evaluate.predictions(state.eval_params, state.batch_stats, views)
    if views != config.eval.views:
      name = VIEW_NAMES[views].replace(' ', '_')
      final = scores.errors(predictions.probabilities, predictions.label)
      results.update({f'{name}/{key}': value for key, value in final.items()})
    speeds = [r['images_per_second'] for r in records if 'images_per_second' in r]
    results |= {
      'views': config.eval.views,
      'evaluated_images': len(self.store.eval.labels),
      'epoch': self.experiment.calendar.epoch_of(int(state.step)),
      'steps': int(state.step),
      'seed': config.seed,
      'seconds': max((r.get('seconds', 0.0) for r in records), default=0.0),
      'images_per_second': float(np.median(speeds)) if speeds else None,
      'parameters': layers.count_parameters(self.experiment.table, self.experiment.view_shape),
      'command': command,
      'workdir': str(workdir),
      'figures': str(workdir / 'figures'),
      **environment(self.devices),
    }
    if self.devices.process_index == 0:
      draw(self.experiment, records, to_host(state.params), workdir)
      write_predictions(workdir / f'predictions-last-{views}.npz', predictions)
      files.write_json(workdir / RESULTS, results)
    return results


def draw(experiment: Experiment, records: list[dict], params: dict, workdir: Path) -> None:
  """Learning curves and the first layer's kernels, in WORKDIR/figures."""
  folder = workdir / 'figures'
  folder.mkdir(exist_ok=True)
  net = nets.title(experiment.config.model)
  figures.learning_curves(records, folder / 'learning_curves.png', title=f'{workdir.name}: {net}')
  first = experiment.table[0]
  # The towers of 2012: conv1 itself sees all colours, the grouping begins with conv2.
  towers = max((row.groups for row in experiment.table if isinstance(row, layers.Conv)), default=1)
  figures.filter_grid(
    params[first.name]['kernel'],
    folder / 'first_layer_kernels.png',
    towers=towers,
    title=f'{workdir.name}: kernels of {first.name}',
  )
