"""The work of a contestant, which runs in a process of its own, and how it is timed."""

import abc
import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alexnet_jax.model import layers


class Unavailable(Exception):
  """A contestant cannot take part here; the message is one line that says why."""


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

  def prepare(self, seconds: float) -> float:
    """Compiles, and finds how many batches fill a turn of `seconds`.

    Returns:
      What the first batch took, in seconds.
    """
    first = timed(self.run, 1).seconds
    batches = 1
    while (spent := timed(self.run, batches).seconds) < seconds / 4:
      batches *= 2
    self._turn = max(1, round(batches * seconds / spent))
    return first

  def measure(self) -> Sample:
    """Takes a turn, after one batch that does not count: another's turn has cooled the caches."""
    self.run(1)
    return self.turn()

  def turn(self) -> Sample:
    """Times a turn."""
    return timed(self.run, self._turn)

  def environment(self) -> dict:
    """Hardware, versions and date."""
    # Only after measuring: some workloads need no JAX, which starts threads.
    from alexnet_jax.runtime.environment import environment
    from alexnet_jax.train.devices import Devices

    return environment(Devices())

  def facts(self) -> dict:
    """What else is worth knowing after the last turn: versions of the packages that do the work."""
    names = ('jax', 'torch', 'tensorflow', 'ffcv')
    return {
      'versions': {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    }


def timed(work: Callable[[int], int], batches: int) -> Sample:
  """Times `work`, which takes a number of batches and returns a number of images."""
  cores, began = _core_seconds(), time.perf_counter()
  images = work(batches)
  return Sample(images, time.perf_counter() - began, _core_seconds() - cores)


def _core_seconds() -> float:
  """What this process and its ended children have used of all cores."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)


@dataclasses.dataclass(frozen=True)
class Task:
  """The training step that all contestants are given.

  Attributes:
    table: the net.
    view_shape: (crop, crop, 3).
    platform: what our step runs on, such as 'cpu'.
    compute_dtype, optimizer, momentum: as in the config.
    views: float32 (N, crop, crop, 3), the net's input without random augmentation.
    labels: int32 (N,).
    weights: initial {layer: {'kernel', 'bias'}}, float32.
    rates, decays: learning rates and weight decay in the shape of `weights`, floats.
  """

  table: layers.Table
  view_shape: layers.Shape
  platform: str
  compute_dtype: str
  optimizer: str
  momentum: float
  views: np.ndarray
  labels: np.ndarray
  weights: dict
  rates: dict
  decays: dict


class LossAndGrads(NamedTuple):
  """Loss and gradients {layer: {'kernel', 'bias'}} of one batch without anything random."""

  loss: float
  gradients: dict


def without_dropout(table: layers.Table) -> layers.Table:
  """The same net, its dropout layers keeping every unit."""
  return tuple(
    dataclasses.replace(row, keep=1.0) if isinstance(row, layers.Dropout) else row for row in table
  )
