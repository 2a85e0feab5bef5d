"""The checkpoint benchmark: how long saves block training, and what they and restores take."""

import collections
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import ml_collections
from flax.serialization import to_state_dict

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.our_step import OurStep
from alexnet_jax.benchmarks.race import Options, Result, spread
from alexnet_jax.benchmarks.worker import Contestant, start_worker
from alexnet_jax.benchmarks.workload import timed
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.terminal import Console, aligned, si
from alexnet_jax.train.devices import to_host

_OURS = Contestant('training that saves', 'alexnet_jax.benchmarks.time_checkpoint:SavingTraining')
_STEPS_ALONE = 3


def measure_checkpoint(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures saves during training, and restores.

  Arguments as those of `time_step.measure_step`.
  """
  plain = configs.to_json(config)
  with (
    tempfile.TemporaryDirectory(prefix='alexnet_jax-checkpoint-') as folder,
    start_worker(_OURS, config=plain, folder=Path(folder)) as worker,
  ):
    seconds = collections.defaultdict[str, list[float]](list)
    size, _ = worker.call('save_and_restore')  # the first compiles, and does not count
    for number in range(options.rounds):
      Console().message(f'save {number + 1} of {options.rounds}')
      for what, took in worker.call('save_and_restore')[1].items():
        seconds[what].append(took)
    environment = worker.call('environment')
  rows = [('', 'median s', 'quartiles', 'worst')]
  for what, times in seconds.items():
    median, low, high = spread(times).values()
    rows.append((what, f'{median:.3f}', f'{low:.3f} - {high:.3f}', f'{max(times):.3f}'))
  return Result(
    target='checkpoint',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}, a state of {si(size, "B")}',
    lines=tuple(aligned(rows)),
    environment=environment,
    details={'seconds': dict(seconds), 'bytes': size, 'config': plain},
  )


class SavingTraining(OurStep):
  """The training step, with saves as the training loop makes them."""

  def __init__(self, config: dict, folder: Path):
    super().__init__(config)
    self._checkpoints = Checkpoints(folder, keep=1)
    self._saves = 0

  def save_and_restore(self) -> tuple[int, dict[str, float]]:
    """Returns the bytes of the state, and the seconds of each part."""
    usual = timed(self.run, _STEPS_ALONE).seconds / _STEPS_ALONE
    self._saves += 1
    began = time.perf_counter()
    state = self._program.replicated(self._state)
    self._checkpoints.save(self._saves, to_state_dict(state), {})
    hold = time.perf_counter() - began
    with ThreadPoolExecutor(1) as pool:
      saved = pool.submit(self._end_of_save)
      lost = timed(self.run, 1).seconds - usual
      while not saved.done():
        lost += timed(self.run, 1).seconds - usual
    target = to_state_dict(to_host(self._program.replicated(self._state)))
    restore_began = time.perf_counter()
    self._checkpoints.restore(target)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(target)), {
      'a save holds the loop': hold,
      'a save in all': saved.result() - began,
      'steps lose meanwhile': lost,
      'a restore': time.perf_counter() - restore_began,
    }

  def _end_of_save(self) -> float:
    self._checkpoints.wait()
    return time.perf_counter()
