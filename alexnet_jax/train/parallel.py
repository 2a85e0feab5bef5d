"""Data parallelism: the only file that knows devices.

The state has no device axis: it is one replicated array per leaf, given to pmap with
`in_axes=None` and returned with `out_axes=None`.  Nothing checks that the replicas agree, so
everything that comes back that way has been averaged over `AXIS` inside the step.
"""

import collections
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.errors import UserError

AXIS = 'batch'


class Devices:
  """The devices of this process and how arrays get to them and back.

  Attributes:
    local_count, global_count: devices of this process and of all processes.
    process_index, process_count: which process this is, of how many.
  """

  def __init__(self, devices: list[jax.Device] | None = None):
    """Takes all devices, or, where there is a single process, those given."""
    local = devices or jax.local_devices()
    self._given = devices
    mesh = Mesh(np.array(local), (AXIS,))
    self._split = NamedSharding(mesh, PartitionSpec(AXIS))
    self._whole = NamedSharding(mesh, PartitionSpec())
    self.platform = local[0].platform
    self.kind = local[0].device_kind
    self.local_count = len(local)
    self.global_count = len(devices) if devices else jax.device_count()
    self.process_index = jax.process_index()
    self.process_count = jax.process_count()

  @classmethod
  def single(cls) -> 'Devices':
    """The first device of this process alone."""
    return cls(jax.local_devices()[:1])

  def describe(self) -> str:
    return (
      f'process {self.process_index + 1}/{self.process_count}, {self.local_count} of'
      f' {self.global_count} devices, {self.platform} ({self.kind})'
    )

  def check_batch(self, name: str, size: int, multiple: int = 1) -> None:
    """Raises UserError unless a global batch divides over the devices."""
    divisor = self.global_count * multiple
    if size % divisor:
      what = f'{self.global_count} devices' + (f' x {multiple} micro-batches' * (multiple > 1))
      lower = size // divisor * divisor
      nearest = f'{lower} or {lower + divisor}' if lower else f'{divisor}'
      raise UserError(f'{name}={size} is not divisible by {what}: use --config.{name}={nearest}')

  def check_training_batch(self, config) -> None:
    """Raises UserError unless a config's training batch divides over devices and ghost batches."""
    self.check_batch('batch_size', config.batch_size, config.micro_batches)
    images = config.batch_size // (self.global_count * config.micro_batches)
    ghost_batch = config.model.ghost_batch
    whole = config.micro_batches > 1
    if ghost_batch and (images != ghost_batch if whole else images % ghost_batch):
      part = f'{images} images of a {"micro-" * whole}batch on a device'
      raise UserError(
        f'model.ghost_batch={ghost_batch} {"is not" if whole else "does not divide"} the {part}:'
        f' use --config.model.ghost_batch={images}'
      )

  def check_kernels(self, config) -> None:
    """Raises UserError where these devices cannot run the GPU kernels that a config asks for."""
    if config.model.fused_kernels and self.platform != 'gpu':
      raise UserError(
        f'config.model.fused_kernels=True: its kernels run on GPUs, and this is a {self.platform}:'
        ' use --config.model.fused_kernels=False'
      )

  def memory_bytes(self) -> int | None:
    """What the smallest device of this process has for arrays; None where it does not say."""
    stats = [device.memory_stats() or {} for device in self._whole.device_set]
    return min((each['bytes_limit'] for each in stats if 'bytes_limit' in each), default=None)

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Spreads (n, ...) host arrays over the devices as (local_count, n / local_count, ...)."""
    split = {k: v.reshape(self.local_count, -1, *v.shape[1:]) for k, v in batch.items()}
    return jax.device_put(split, self._split)

  def stream(self, batches: Iterator[dict], ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """Puts batches on the devices, `ahead` of them before they are asked for."""
    queue = collections.deque()
    for batch in batches:
      queue.append(self.put_batch(batch))
      if len(queue) > ahead:
        yield queue.popleft()
    yield from queue

  def replicate(self, tree):
    """Host arrays as arrays that are whole on every device."""
    return jax.device_put(jax.tree.map(np.asarray, tree), self._whole)

  def train_step(self, step):
    """Maps (state, batch) -> (state, metrics) over the devices; the state is donated."""
    return self._map(step, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0)

  def train_steps(self, steps):
    """Maps (state, examples, batch) -> (state, metrics), the examples whole on every device."""
    return self._map(steps, in_axes=(None, None, 0), out_axes=(None, None), donate_argnums=0)

  def view_probabilities(self, function):
    """Maps (params, batch_stats, images, view) -> probabilities with a device axis."""
    return self._map(function, in_axes=(None, None, 0, None), out_axes=0)

  def score(self, function):
    """Maps (probabilities, label, mask) -> sums that are equal on all devices."""
    return self._map(function, in_axes=(0, 0, 0), out_axes=None)

  def any(self, flag: bool) -> jax.Array:
    """Whether `flag` is set in any process, without waiting for the answer."""
    flags = jax.device_put(np.full(self.local_count, flag, np.int32), self._split)
    return self._any(flags)

  @functools.cached_property
  def _any(self):
    return self._map(lambda flag: jax.lax.pmax(flag, AXIS), in_axes=0, out_axes=None)

  def _map(self, function, **axes):
    return jax.pmap(function, axis_name=AXIS, devices=self._given, **axes)


def to_host(tree):
  """The same pytree as NumPy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
