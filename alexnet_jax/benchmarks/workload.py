"""The work of a contestant, which runs in a process of its own, and how it is timed."""

import abc
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Sample(NamedTuple):
  """One turn: images dealt with, seconds it took, and seconds of all cores together."""

  images: int
  seconds: float
  core_seconds: float

  @property
  def per_second(self) -> float:
    return self.images / self.seconds

  @property
  def per_core_second(self) -> float:
    return self.images / self.core_seconds


class Workload(abc.ABC):
  """Works through batches in a process of its own; see `worker.py`."""

  @abc.abstractmethod
  def run(self, batches: int) -> int:
    """Works through so many batches, to the end; returns the number of images."""

  def prepare(self, seconds: float) -> None:
    """Compiles, and finds how many batches fill a turn of `seconds`."""
    self.run(1)
    batches = 1
    while (spent := timed(self.run, batches).seconds) < seconds / 4:
      batches *= 2
    self._turn = max(1, round(batches * seconds / spent))

  def measure(self) -> Sample:
    """Takes a turn, after one batch that does not count: another's turn has cooled the caches."""
    self.run(1)
    return self.turn()

  def turn(self) -> Sample:
    """Times a turn."""
    return timed(self.run, self._turn)

  def environment(self) -> dict[str, Any]:
    """Hardware, versions and date."""
    # Only after measuring: some workloads need no JAX, which starts threads.
    from alexnet_jax.runtime.environment import environment
    from alexnet_jax.train.devices import Devices

    return environment(Devices())

  def info(self) -> dict[str, Any]:
    """What else is worth knowing after the last turn: versions of what does the work."""
    names = [name for name in ('jax', 'torch', 'tensorflow') if name in sys.modules]
    versions = {name: sys.modules[name].__version__ for name in names}
    return {'versions': versions | {'python': platform.python_version()}}


def timed(work: Callable[[int], int], batches: int) -> Sample:
  """Times `work`, which takes a number of batches and returns a number of images."""
  cores, began = _core_seconds(), time.perf_counter()
  images = work(batches)
  return Sample(images, time.perf_counter() - began, _core_seconds() - cores)


def _core_seconds() -> float:
  """What this process and its ended children have used of all cores."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)
