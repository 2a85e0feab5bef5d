"""Data parallelism: the only file that knows devices.

The state has no device axis: it is one replicated array per leaf, given to pmap with
`in_axes=None` and returned with `out_axes=None`.  Nothing checks that the replicas agree, so
everything that comes back that way has been averaged over `AXIS` inside the step.

The exception are layers that are spread over the devices, see `Layout`.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets, onednn
from alexnet_jax.runtime import compilation_cache, cpu, platforms

AXIS = 'batch'


class Devices:
  """The devices of this process and how arrays get to them and back.

  Attributes:
    local_count, global_count: devices of this process and of all processes.
    process_index, process_count: which process this is, of how many.
  """

  def __init__(self, devices: list[jax.Device] | None = None):
    """Takes all devices, or, where there is a single process, those given."""
    local = devices or platforms.local_devices()
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
    return cls(platforms.local_devices()[:1])

  def describe(self, settings) -> str:
    """Processes, devices, and on a CPU how a net with the settings of config.model convolves.

    Raises:
      UserError: `model.onednn=on` where it cannot be.
    """
    by_onednn = onednn.used(settings, self.platform)
    return (
      f'process {self.process_index + 1}/{self.process_count}, {self.local_count} of'
      f' {self.global_count} devices, {self.platform} ({self.kind})'
      + (f', {cpu.describe(by_onednn)}' if self.platform == 'cpu' else '')
    )

  def check_batch(self, name: str, size: int, multiple: int = 1) -> None:
    """Raises UserError unless a global batch divides over the devices."""
    divisor = self.global_count * multiple
    if size % divisor:
      what = f'{self.global_count} devices' + (f' x {multiple} micro-batches' * (multiple > 1))
      lower = size // divisor * divisor
      nearest = f'{lower} or {lower + divisor}' if lower else f'{divisor}'
      raise UserError(f'{name}={size} is not divisible by {what}: use --config.{name}={nearest}')

  def check_training_batch(self, config, *, begun: bool = False) -> None:
    """Raises UserError unless a config's training batch divides over devices and ghost batches.

    Args:
      config: of the run.
      begun: it has made steps, so that only the devices can change.
    """
    images = config.batch_size // config.grad_accum_steps
    if begun and images % self.global_count:
      fitting = max(n for n in range(1, self.global_count) if images % n == 0)
      raise UserError(
        f'batch_size={config.batch_size} of this run is not divisible by {self.global_count}'
        f' devices: go on with a number that divides it, such as {fitting}'
      )
    self.check_batch('batch_size', config.batch_size, config.grad_accum_steps)
    images = config.batch_size // (self.global_count * config.grad_accum_steps)
    ghost_batch = config.model.ghost_batch if nets.has_batch_norm(config) else 0
    whole = config.grad_accum_steps > 1
    if ghost_batch and (images != ghost_batch if whole else images % ghost_batch):
      part = f'{images} images of a {"micro-" * whole}batch on a device'
      raise UserError(
        f'model.ghost_batch={ghost_batch} {"is not" if whole else "does not divide"} the {part}:'
        f' use --config.model.ghost_batch={images}'
      )

  def memory_bytes(self) -> int | None:
    """What the smallest device of this process has for arrays; None where it does not say."""
    stats = [device.memory_stats() or {} for device in self._whole.device_set]
    return min((each['bytes_limit'] for each in stats if 'bytes_limit' in each), default=None)

  def dense_shards(self, config) -> int:
    """Devices that a dense layer is spread over: all with config.model.shard_dense, else 1.

    Raises:
      UserError: no dense layer can be.
    """
    shards = self.global_count if config.model.shard_dense else 1
    if shards == 1:
      return 1
    # While the number of classes is not known, the last layer may turn out to stay whole.
    table = nets.table_of(config, config.data.num_classes or shards)
    if not layers.sharded(table, shards):
      dense = [f'{row.name} {row.features:,}' for row in table if isinstance(row, layers.Dense)]
      raise UserError(
        f'model.shard_dense=True: {shards} devices divide the outputs of no dense layer'
        f' ({", ".join(dense) or "there is none"}): use --config.model.shard_dense=False'
      )
    return shards

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

  def train_step(self, step, axes=None, cache: bool = True):
    """Maps (state, batch) -> (state, metrics) over the devices; the state is donated.

    `axes` is that of the state's `Layout`; None: all of it is whole on every device.  `cache`: see
    `pmap`.
    """
    return self.pmap(step, cache=cache, in_axes=(axes, 0), out_axes=(axes, None), donate_argnums=0)

  def train_steps(self, steps, axes=None, cache: bool = True):
    """As `train_step`, for (state, examples, batch), the examples whole on every device."""
    return self.pmap(
      steps, cache=cache, in_axes=(axes, None, 0), out_axes=(axes, None), donate_argnums=0
    )

  def view_probabilities(self, function, cache: bool = True):
    """Maps (params, batch_stats, images, view) -> probabilities with a device axis."""
    return self.pmap(function, cache=cache, in_axes=(None, None, 0, None), out_axes=0)

  def score(self, function):
    """Maps (probabilities, label, mask) -> sums that are equal on all devices."""
    return self.pmap(function, in_axes=(0, 0, 0), out_axes=None)

  def any_process(self, flag: bool) -> jax.Array:
    """Whether `flag` is set in any process, without waiting for the answer."""
    return self._any(self.per_device(int(flag)))

  def per_device(self, number: int) -> jax.Array:
    """int32 (local_count,): a number for every device."""
    return jax.device_put(np.full(self.local_count, number, np.int32), self._split)

  @functools.cached_property
  def _any(self):
    return self.pmap(lambda flag: jax.lax.pmax(flag, AXIS), in_axes=0, out_axes=None)

  def pmap(self, function, *, out_axes, cache: bool = True, **more):
    """pmap over these devices; the program is not kept on disk unless `cache`.

    With several processes pmap hashes out_axes, which a tree with dicts does not allow: results
    pass through it as a tuple of what `out_axes` has an axis for.

    Returns:
      The mapped function; its attribute `compiled` takes the same arguments, or their shapes, and
      returns the jax.stages.Compiled that it would run.
    """
    axes, tree = jax.tree.flatten(out_axes, is_leaf=lambda axis: axis is None)

    def parts(*arguments):
      return tuple(tree.flatten_up_to(function(*arguments)))

    mapped = jax.pmap(parts, axis_name=AXIS, devices=self._given, out_axes=tuple(axes), **more)

    keeping = contextlib.nullcontext if cache else compilation_cache.nothing_kept

    def call(*arguments):
      with keeping():
        return tree.unflatten(mapped(*arguments))

    def compiled(*arguments):
      with keeping():
        return mapped.lower(*arguments).compile()

    call.compiled = compiled
    return call


class Layout:
  """How a state lies on the devices: whole on each, but for the layers that are spread over them.

  Of a spread layer each device has an equal part of the last axis of every leaf: kernel and bias,
  their velocities, moments and moving averages.  The leaf then has a device axis in front.

  Attributes:
    sharded: names of those layers.
    axes: where the leaves have a device axis, 0 or None, as pmap takes it; None if nowhere.
  """

  def __init__(self, devices: Devices, state, sharded: Collection[str]):
    """Takes a state, whose leaves are not kept, and the names of the layers that are spread."""

    def axis(path, leaf):
      del leaf
      names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
      return None if set(names).isdisjoint(sharded) else 0

    self._devices = devices
    self.sharded = sharded
    self.axes = jax.tree_util.tree_map_with_path(axis, state) if sharded else None

  def put(self, state):
    """Puts a whole host state on the devices."""
    whole = self._devices.replicate(state)
    if self.axes is None:
      return whole

    def part(leaf):
      size = leaf.shape[-1] // self._devices.global_count
      return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(AXIS) * size, size, axis=-1)

    # The devices cut, because only they know their order.  Something mapped is what pmap asks for.
    cut = self._devices.pmap(
      lambda state, _: self._of_spread(part, state), in_axes=(None, 0), out_axes=self.axes
    )
    return cut(whole, self._devices.per_device(0))

  def shapes(self, state):
    """Shapes and types, as `put` would return them, of a whole state or of its shapes."""
    count = self._devices.local_count

    def part(leaf):
      size = leaf.shape[-1] // self._devices.global_count
      return jax.ShapeDtypeStruct((count, *leaf.shape[:-1], size), leaf.dtype)

    return state if self.axes is None else self._of_spread(part, state)

  def whole(self, state):
    """The state as it is without spread layers, on every device; all processes have to call it."""
    return state if self.axes is None else self._gather(state)

  @functools.cached_property
  def _gather(self):
    def together(leaf):
      return jax.lax.all_gather(leaf, AXIS, axis=leaf.ndim - 1, tiled=True)

    return self._devices.pmap(
      functools.partial(self._of_spread, together), in_axes=(self.axes,), out_axes=None
    )

  def _of_spread(self, change: Callable[[jax.Array], jax.Array], state):
    """The state with its spread leaves changed."""
    return jax.tree.map(
      lambda axis, leaf: leaf if axis is None else change(leaf),
      self.axes,
      state,
      is_leaf=lambda axis: axis is None,
    )


def to_host(tree):
  """The same pytree as NumPy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
