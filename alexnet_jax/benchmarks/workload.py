"""What a contestant runs in its process, and how it is timed."""

import abc
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Sample(NamedTuple):
  """One turn: images processed, wall-clock seconds, and seconds of all cores together."""

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
  """Processes batches; a `worker.Worker` runs it in a process of its own."""

  @abc.abstractmethod
  def run(self, batches: int) -> int:
    """Processes this many batches and waits for them; returns the number of images."""

  def prepare(self, seconds: float) -> None:
    """Compiles, and determines how many batches a turn of `seconds` has."""
    self.run(1)
    batches = 1
    while (spent := timed(self.run, batches).seconds) < seconds / 4:
      batches *= 2
    self._turn = max(1, round(batches * seconds / spent))

  def measure(self) -> Sample:
    """Takes a turn, after one batch that is not timed, as another's turn has filled the caches."""
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
    """More for the results, after the last turn: versions of the libraries in use."""
    names = [name for name in ('jax', 'torch', 'tensorflow') if name in sys.modules]
    versions = {name: sys.modules[name].__version__ for name in names}
    return {'versions': versions | {'python': platform.python_version()}}


def timed(work: Callable[[int], int], batches: int) -> Sample:
  """Times `work`, which takes a number of batches and returns a number of images."""
  cores, began = _core_seconds(), time.perf_counter()
  images = work(batches)
  return Sample(images, time.perf_counter() - began, _core_seconds() - cores)


def _core_seconds() -> float:
  """CPU time of this process and of its children that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)
