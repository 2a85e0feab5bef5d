"""The checkpoint benchmark: how long saves hold training up, and what they and restores take."""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import ml_collections
from flax.serialization import to_state_dict

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.our_step import OurStep
from alexnet_jax.benchmarks.rounds import Options, Result, say, seconds_table
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.terminal import si
from alexnet_jax.train.devices import to_host

_OURS = Contestant('training that saves', 'alexnet_jax.benchmarks.time_checkpoint:SavingTraining')
_STEPS_ALONE = 3


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures saves of a config's state while its training goes on, and restores.

  Arguments as those of `time_step.compare`.
  """
  plain = configs.to_json(config)
  with (
    tempfile.TemporaryDirectory(prefix='alexnet_jax-checkpoint-') as folder,
    _OURS.start(config=plain, folder=Path(folder)) as worker,
  ):
    size = worker.call('save_and_restore')['bytes']  # the first compiles, and reads back
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
  return Result(
    target='checkpoint',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, a state of'
    f' {si(size, "B")}, a step of {usual:.3f} s',
    lines=seconds_table(seconds),
    environment=environment,
    details={'seconds': seconds, 'bytes': size, 'step_seconds': usual, 'config': plain},
  )


class SavingTraining(OurStep):
  """The training step, with saves as the training loop makes them."""

  def __init__(self, config: dict, folder: Path):
    super().__init__(config)
    self._checkpoints = Checkpoints(folder, keep=1)
    self._saves = 0

  def save_and_restore(self) -> dict:
    """Seconds of steps without a save, of a save and the steps meanwhile, and of a restore."""
    alone = [self._timed_step() for _ in range(_STEPS_ALONE)]
    self._saves += 1
    meta = {'config': configs.to_json(self._config), 'classes': [], 'top1_error': None}
    began = time.perf_counter()
    whole = self._program.replicated(self._state)
    self._checkpoints.save(self._saves, to_state_dict(whole), meta)
    hold = time.perf_counter() - began
    with ThreadPoolExecutor(1) as pool:
      saved = pool.submit(self._end_of_save)
      during = [self._timed_step()]
      while not saved.done():
        during.append(self._timed_step())
    save = saved.result() - began
    target = to_state_dict(to_host(self._program.replicated(self._state)))
    began = time.perf_counter()
    self._checkpoints.restore(target)
    return {
      'bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(target)),
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
    self.run(1)
    return time.perf_counter() - began
