"""The devices of a job: which there are, how arrays get to them, and `pmap` over them.

The training state has no device axis: each leaf is one replicated array, passed to pmap with
`in_axes=None` and returned with `out_axes=None`. JAX does not check that the replicas agree, so
everything returned that way must have been averaged over `AXIS`.

It is pmap, not jit with sharded arguments, since a step is written for one device and spells out
all that devices exchange: nothing of that is left to XLA's partitioner.
"""

import collections
import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.errors import UserError
from alexnet_jax.model import nets, onednn
from alexnet_jax.runtime import compilation_cache, cpu
from alexnet_jax.runtime.jax_setup import local_devices

AXIS = 'batch'


class Devices:
  """The devices of a job.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    kind: name of the hardware.
    local_count, global_count: number of devices of this process and of all processes.
    process_index, process_count: which process this is, of how many.
  """

  def __init__(self, devices: list[jax.Device] | None = None):
    """Takes all devices, or, in a job of one process, the given ones."""
    local = devices or local_devices()
    self._given = devices
    mesh = Mesh(np.array(local), (AXIS,))
    self._split = NamedSharding(mesh, PartitionSpec(AXIS))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self.platform = local[0].platform
    self.kind = local[0].device_kind
    self.local_count = len(local)
    self.global_count = len(devices) if devices else jax.device_count()
    self.process_index = jax.process_index()
    self.process_count = jax.process_count()

  @classmethod
  def single(cls) -> 'Devices':
    """Only the first device of this process."""
    return cls(local_devices()[:1])

  def describe(self, settings) -> str:
    """A line about processes, devices and, on a CPU, the library that computes convolutions.

    Args:
      settings: config.model.

    Raises:
      UserError: `model.onednn=on`, but oneDNN is not available.
    """
    by_onednn = onednn.used(settings, self.platform)
    return (
      f'process {self.process_index + 1}/{self.process_count}, {self.local_count} of'
      f' {self.global_count} devices, {self.platform} ({self.kind})'
      + (f', {cpu.settings(by_onednn)}' if self.platform == 'cpu' else '')
    )

  def memory_bytes(self) -> int | None:
    """Memory of the smallest device of this process; None if the platform does not report it."""
    stats = [device.memory_stats() or {} for device in self._replicated.device_set]  # type: ignore[attr-defined]
    return min((each['bytes_limit'] for each in stats if 'bytes_limit' in each), default=None)

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Splits (n, ...) host arrays over the devices, as (local_count, n / local_count, ...)."""
    split = {k: v.reshape(self.local_count, -1, *v.shape[1:]) for k, v in batch.items()}
    return jax.device_put(split, self._split)

  def stream(self, batches: Iterator[dict]) -> Iterator[dict[str, jax.Array]]:
    """Puts batches on the devices, two of them before they are asked for."""
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
      queue.append(self.put_batch(batch))
      if len(queue) > 2:
        yield queue.popleft()
    yield from queue

  def replicate(self, tree):
    """Copies host arrays to every device."""
    return jax.device_put(jax.tree.map(np.asarray, tree), self._replicated)

  def per_device(self, value) -> jax.Array:
    """(local_count, ...): a copy of a host array for every device, along a device axis."""
    value = np.asarray(value)
    return jax.device_put(np.broadcast_to(value, (self.local_count, *value.shape)), self._split)

  def pmap(self, function, *, out_axes, cache: bool = True, **options):
    """`jax.pmap` over these devices, with the axis name `AXIS`.

    Args:
      function: to be mapped.
      out_axes: a prefix of the tree that `function` returns; dicts are allowed, also with several
        processes, where `jax.pmap` cannot hash them.
      cache: whether the compiled program may be written to the compilation cache.
      **options: of `jax.pmap`.

    Returns:
      The mapped function. Its attribute `compiled` takes the same arguments, or their shapes, and
      returns the `jax.stages.Compiled` that it would run.
    """
    axes, tree = jax.tree.flatten(out_axes, is_leaf=lambda axis: axis is None)

    def flat(*arguments):
      return tuple(tree.flatten_up_to(function(*arguments)))

    mapped = jax.pmap(flat, axis_name=AXIS, devices=self._given, out_axes=tuple(axes), **options)
    caching = contextlib.nullcontext if cache else compilation_cache.disabled

    def call(*arguments):
      with caching():
        return tree.unflatten(mapped(*arguments))

    def compiled(*arguments):
      with caching():
        return mapped.lower(*arguments).compile()

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


def pmean(tree):
  """The mean over all devices, inside `Devices.pmap`."""
  return jax.lax.pmean(tree, AXIS)


def to_host(tree):
  """The same pytree with NumPy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def check_batch_size(
  name: str, size: int, devices: Devices, micro_batches: int = 1, *, fixed: bool = False
) -> None:
  """Raises UserError unless the global batch of field `name` divides over the devices.

  If the size is `fixed`, since the run began with it, the advice is to change the devices instead.
  """
  divisor = devices.global_count * micro_batches
  if size % divisor:
    what = f'{devices.global_count} devices'
    what += f' x {micro_batches} micro-batches' * (micro_batches > 1)
    lower = size // divisor * divisor
    nearest = f'{lower} or {lower + divisor}' if lower else f'{divisor}'
    advice = f'use --config.{name}={nearest}'
    if fixed:
      advice = f'the run began with it: resume on a number of devices that divides {size}'
      advice += f' / {micro_batches}' * (micro_batches > 1)
    raise UserError(f'{name}={size} is not divisible by {what}: {advice}')


def check_training_batch(config, devices: Devices, *, begun: bool = False) -> None:
  """Raises UserError unless a config's training batch divides over devices and ghost batches."""
  micro_batches, ghost_batch = config.grad_accum_steps, config.model.ghost_batch
  check_batch_size('batch_size', config.batch_size, devices, micro_batches, fixed=begun)
  images = config.batch_size // micro_batches // devices.global_count
  fits = ghost_batch == images or (micro_batches == 1 and images % (ghost_batch or 1) == 0)
  if nets.has_batch_norm(config) and ghost_batch and not fits:
    raise UserError(
      f'model.ghost_batch={ghost_batch} does not fit the {images} images of a (micro-)batch on a'
      f' device: use --config.model.ghost_batch={images}'
    )
