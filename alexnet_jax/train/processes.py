"""Communication between the processes of a job; without effect in a job of one process.

All functions are collective: every process has to call them, in the same order.
"""

import collections
import json
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.errors import UserError
from alexnet_jax.train.devices import AXIS, Devices

_BARRIER_SECONDS = 600


def from_first(tree: Any) -> Any:
  """Broadcasts a pytree of arrays from process 0; all processes must have the same shapes."""
  if jax.process_count() == 1:
    return tree
  # JAX broadcasts by adding zeros, and -0.0 + 0.0 is 0.0: so the arrays are sent as bytes.
  arrays = jax.tree.map(lambda leaf: np.asarray(leaf, order='C'), tree)
  raw = multihost_utils.broadcast_one_to_all(
    jax.tree.map(lambda leaf: leaf.reshape(-1).view(np.uint8), arrays)
  )
  return jax.tree.map(
    lambda leaf, array: np.asarray(leaf).view(array.dtype).reshape(array.shape), raw, arrays
  )


def gather(array: np.ndarray) -> np.ndarray:
  """Concatenates the arrays of all processes, of the same shape, along the first axis."""
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_agreement(**things: Any) -> None:
  """Raises UserError on each process where one of these JSON values differs from process 0's."""
  mine = [zlib.crc32(json.dumps(thing, sort_keys=True).encode()) for thing in things.values()]
  first = from_first(np.array(mine, np.uint32))
  for name, ours, theirs in zip(things, mine, first, strict=True):
    if ours != theirs:
      raise UserError(
        f'process {jax.process_index()} has another {name} than process 0: start all with the same'
        ' command, and give every host the same prepared data'
      )


def shutdown_together(label: str) -> None:
  """Waits for all processes and leaves the job; nothing collective works afterwards.

  Otherwise the others would take the exit of process 0 for a failure.

  Raises:
    TimeoutError: not all of them have called this with the same label.
  """
  if jax.process_count() == 1:
    return
  from orbax.checkpoint import multihost  # slow to import, and one process alone does without

  try:
    multihost.get_barrier_sync_fn()(key=label, timeout_ms=1000 * _BARRIER_SECONDS)
  except Exception as error:
    raise TimeoutError(
      f'not all processes reached {label!r} within {_BARRIER_SECONDS} s: one has died or hangs'
      f' ({" ".join(str(error).split())[:200]})'
    ) from error
  jax.distributed.shutdown()


class AnyProcess:
  """Tells all processes after the same step whether any of them wants to stop.

  A call returns the answer to the one `LAG` calls ago, so that the host does not wait for devices.
  """

  LAG = 2

  def __init__(self, devices: Devices):
    self._devices = devices
    self._any = devices.pmap(lambda flag: jax.lax.pmax(flag, AXIS), in_axes=0, out_axes=None)
    self._asked: collections.deque[jax.Array] = collections.deque()

  def __call__(self, wanted: bool) -> bool:
    """Tells whether this process wants to stop; returns whether any did."""
    if self._devices.process_count == 1:
      return wanted
    self._asked.append(self._any(self._devices.per_device(np.int32(wanted))))
    return len(self._asked) > self.LAG and bool(self._asked.popleft())
