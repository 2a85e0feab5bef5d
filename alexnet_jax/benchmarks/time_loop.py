"""The loop benchmark: training steps with data loading, against the step alone."""

import sys

import jax
import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.race import OURS, Options, Result, race, speed_table
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.benchmarks.workload import Sample, Workload
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.runtime import cpu
from alexnet_jax.train import modes
from alexnet_jax.train.devices import Devices, check_training_batch, to_host
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.train.loop import make_program

_LOOP = Contestant('fed from the store', 'alexnet_jax.benchmarks.time_loop:OurLoop')
PEERS = {'step_alone': Contestant('step alone', 'alexnet_jax.benchmarks.our_step:OurStep')}


def measure_loop(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures what feeding costs a training step; arguments as those of `time_step.measure_step`.

  Raises:
    UserError: the data is missing or does not fit.
  """
  prepare_store(config.data)  # here, where its progress is seen
  plain = configs.to_json(config)
  raced = race({OURS: _LOOP} | options.wanted(PEERS), options, config=plain)
  wait = raced['contestants'][OURS]['data_wait']
  calls = f', {config.steps_per_call} steps a call' * (config.steps_per_call > 1)
  return Result(
    target='loop',
    title=f'{name}, net {config.model.net}, batch {config.batch_size},'
    f' images from {config.data.source}{calls}',
    lines=(
      *speed_table(raced['contestants'], config.batch_size),
      f'{wait:.2%} of the time was spent waiting for data (goal: under 1 %)',
    ),
    details={'data_wait': wait, 'config': plain},
    **raced,
  )


class OurLoop(Workload):
  """Training steps on batches of the store, as in training."""

  def __init__(self, config: dict):
    """Takes a config as `config.to_json` gives it; UserError if its data or batch does not fit."""
    cpu.configure()
    self._config = configs.from_json(config)
    devices = Devices()
    check_training_batch(self._config, devices)
    store = prepare_store(self._config.data)
    experiment = make_experiment(self._config, store, devices.platform)
    modes.check(experiment, store.train, devices)
    initial = to_host(experiment.initial_state())
    program = make_program(experiment, devices, store.train, initial)
    _, self._feed = program.make_batches(0, sys.maxsize, lambda step: False)
    self._train, self._state = program.train_step, devices.replicate(initial)
    self._batches = devices.stream(self._feed)
    self._seconds = self._waited = 0.0

  def run(self, batches: int) -> int:
    """As `Workload.run`, with `batches` calls of `steps_per_call` steps each."""
    for _ in range(batches):
      self._state, metrics = self._train(self._state, next(self._batches))
    jax.block_until_ready((self._state, metrics))
    return batches * self._config.steps_per_call * self._config.batch_size

  def turn(self) -> Sample:
    before = self._feed.wait_seconds
    sample = super().turn()
    self._waited += self._feed.wait_seconds - before
    self._seconds += sample.seconds
    return sample

  def info(self) -> dict:
    """Also the share of the time that was spent waiting for data."""
    return super().info() | {'data_wait': self._waited / self._seconds}
