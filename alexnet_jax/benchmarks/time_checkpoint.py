"""The checkpoint benchmark: how long saves hold training up, and what they and restores take."""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flax
import jax
import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.our_step import make_up
from alexnet_jax.benchmarks.rounds import Figures, Options, say, seconds_table
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.runtime import cpu
from alexnet_jax.runtime.environment import environment
from alexnet_jax.train.devices import Devices, check_training_batch, to_host
from alexnet_jax.train.loop import make_program

_OURS = Contestant('training that saves', 'alexnet_jax.benchmarks.time_checkpoint:SavingTraining')
_STEPS_ALONE = 3


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Figures:
  """Measures saves of a config's state while its training goes on, and restores.

  Args:
    name: of the config, for the title.
    config: validated; only its net, batch size and optimizer matter.
    options: how often.

  Raises:
    UserError: the batch does not fit the devices.
  """
  plain = configs.to_json(config)
  with (
    tempfile.TemporaryDirectory(prefix='alexnet_jax-checkpoint-') as folder,
    _OURS.start(config=plain, folder=Path(folder)) as worker,
  ):
    size = worker.call('prepare')
    rounds = []
    for number in range(options.rounds):
      say(f'save {number + 1} of {options.rounds}')
      rounds.append(worker.call('save_and_restore'))
    environment = worker.call('environment')
  usual = statistics.median(step for turn in rounds for step in turn['steps_alone'])
  seconds = {
    'a save holds the loop': [turn['hold'] for turn in rounds],
    'a save in all': [turn['save'] for turn in rounds],
    'steps lose meanwhile': [sum(step - usual for step in turn['steps_during']) for turn in rounds],
    'a restore': [turn['restore'] for turn in rounds],
  }
  return Figures(
    target='checkpoint',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, a state of'
    f' {size / 1e6:,.0f} MB, a step of {usual:.3f} s',
    lines=seconds_table(seconds),
    environment=environment,
    details={'seconds': seconds, 'bytes': size, 'step_seconds': usual, 'config': plain},
  )


class SavingTraining:
  """The training step on made-up images, with saves as the training loop makes them."""

  def __init__(self, config: dict, folder: Path):
    """Takes a config as `config.to_json` gives it; UserError if its batch does not fit."""
    cpu.prepare_process()
    self._config = configs.from_json(config)
    self._devices = Devices()
    check_training_batch(self._config, self._devices)
    self._checkpoints = Checkpoints(folder, keep=1)
    self._saves = 0

  def environment(self) -> dict:
    return environment(self._devices)

  def prepare(self) -> int:
    """Compiles and takes the first steps and a first save; returns the bytes of the state."""
    experiment, images = make_up(self._config, self._devices.platform)
    positions = np.arange(len(images), dtype=np.int32)
    labels = positions % len(experiment.classes)
    self._batch = self._devices.put_batch({'image': images, 'label': labels, 'position': positions})
    initial = to_host(experiment.initial_state())
    self._target = flax.serialization.to_state_dict(initial)
    self._program = make_program(experiment, self._devices, None, initial)
    self._state = self._program.shard_state(self._devices.replicate(initial))
    self._timed_step()
    self.save_and_restore()
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self._target))

  def save_and_restore(self) -> dict:
    """Seconds of steps without a save, of a save and the steps meanwhile, and of a restore."""
    alone = [self._timed_step() for _ in range(_STEPS_ALONE)]
    self._saves += 1
    meta = {'config': configs.to_json(self._config), 'classes': [], 'top1_error': None}
    began = time.perf_counter()
    state = self._program.gather_state(self._state)
    self._checkpoints.save(self._saves, flax.serialization.to_state_dict(state), meta)
    hold = time.perf_counter() - began
    with ThreadPoolExecutor(1) as pool:
      saved = pool.submit(self._end_of_save)
      during = [self._timed_step()]
      while not saved.done():
        during.append(self._timed_step())
    save = saved.result() - began
    began = time.perf_counter()
    self._checkpoints.restore(self._target)
    return {
      'hold': hold,
      'save': save,
      'restore': time.perf_counter() - began,
      'steps_alone': alone,
      'steps_during': during,
    }

  def _end_of_save(self) -> float:
    self._checkpoints.wait()
    return time.perf_counter()

  def _timed_step(self) -> float:
    began = time.perf_counter()
    self._state, metrics = self._program.train_step(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - began
