"""What the processes of a job agree on; with a single process everything here is free.

All of these are collective: every process has to call them, in the same order.
"""

import collections
import json
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.errors import UserError
from alexnet_jax.train.devices import Devices

BARRIER_SECONDS = 600


def from_first(tree: Any) -> Any:
  """The pytree of arrays of process 0, bit for bit, on every process; shapes must be the same."""
  if jax.process_count() == 1:
    return tree
  # Arrays are sent as sums with the zeros of the others; as bytes, because -0.0 + 0.0 is 0.0.
  arrays = jax.tree.map(lambda leaf: np.asarray(leaf, order='C'), tree)
  raw = multihost_utils.broadcast_one_to_all(
    jax.tree.map(lambda leaf: leaf.reshape(-1).view(np.uint8), arrays)
  )
  return jax.tree.map(
    lambda leaf, array: np.asarray(leaf).view(array.dtype).reshape(array.shape), raw, arrays
  )


def gather(array: np.ndarray) -> np.ndarray:
  """The arrays of all processes, one after another along the first axis; shapes must be equal."""
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_same(**things: Any) -> None:
  """Compares what can be written as JSON with what process 0 has.

  Raises:
    UserError: naming what differs, on each process where it does.
  """
  mine = [zlib.crc32(json.dumps(thing, sort_keys=True).encode()) for thing in things.values()]
  first = from_first(np.array(mine, np.uint32))
  for name, ours, theirs in zip(things, mine, first, strict=True):
    if ours != theirs:
      raise UserError(
        f'process {jax.process_index()} has another {name} than process 0: start all with the same'
        ' command, and give every host the same prepared data'
      )


def barrier(label: str, seconds: float = BARRIER_SECONDS) -> None:
  """Waits until every process is here.

  Raises:
    TimeoutError: a process did not come; the message names the place.
  """
  if jax.process_count() == 1:
    return
  from orbax.checkpoint import multihost  # slow to import, and one process alone does without

  try:
    multihost.get_barrier_sync_fn()(key=label, timeout_ms=int(1000 * seconds))
  except Exception as error:
    raise TimeoutError(
      f'not all processes reached {label!r} within {seconds:g} s: one has died or hangs'
      f' ({" ".join(str(error).split())[:200]})'
    ) from error


def shutdown_together(label: str) -> None:
  """Ends the job when every process is here; afterwards nothing collective works any more.

  The end of process 0, which all others depend on, would else be taken for a failure by those that
  are a moment behind.
  """
  if jax.process_count() > 1:
    barrier(label)
    jax.distributed.shutdown()


class Agreement:
  """Whether any process wants to stop, known to all of them at the same step.

  The answer to a question arrives with the `LAG`-th after it, so that asking does not make the
  host wait for the devices.
  """

  LAG = 2

  def __init__(self, devices: Devices):
    self._devices = devices
    self._asked = collections.deque()

  def __call__(self, wanted: bool) -> bool:
    """To be called by every process after the same steps; `wanted`: this one wants to stop."""
    if self._devices.process_count == 1:
      return wanted
    self._asked.append(self._devices.any_process(wanted))
    return len(self._asked) > self.LAG and bool(self._asked.popleft())
