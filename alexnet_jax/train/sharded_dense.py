"""Dense layers sharded over the devices, with `model.shard_dense` ("One weird trick", scheme a).

Each device has an equal part of the columns of a sharded layer: of kernel and bias, and of their
velocity, moments and moving average. It computes its columns for the images of all devices, and
gets back all columns of its own images (Krizhevsky, arXiv 1404.5997, section 4). Whatever follows
the layer, dropout masks and loss included, is the same as without.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet, as_subclass
from alexnet_jax.train import optimizer
from alexnet_jax.train.devices import AXIS, Devices, pmean
from alexnet_jax.train.step import Program, Recipe


def sharded_layers(table: layers.Table, devices: int) -> tuple[str, ...]:
  """Names of the dense layers whose outputs can be divided evenly over this number of devices."""
  dense = [row for row in table if isinstance(row, layers.Dense)] if devices > 1 else []
  return tuple(row.name for row in dense if not row.features % devices)


class ShardedAlexNet(AlexNet):
  """An AlexNet of which a device has only its columns of the layers named in `sharded`."""

  sharded: tuple[str, ...] = ()

  def _weighted(self, row, x):
    if row.name not in self.sharded:
      return super()._weighted(row, x)
    devices = lax.axis_size(self.axis_name)
    columns = dataclasses.replace(row, features=row.features // devices)
    images = lax.all_gather(x.reshape(x.shape[0], -1), self.axis_name, tiled=True)
    outputs = super()._weighted(columns, images)
    return lax.all_to_all(outputs, self.axis_name, split_axis=0, concat_axis=1, tiled=True)


class DenseSharding:
  """What a training step needs for sharded dense layers, in place of its plain parts.

  Attributes:
    sharded: names of the sharded layers; none is fine.
    state_axes: `in_axes` of the state for pmap: 0 for the leaves of sharded layers, which have a
      device axis in front, None for the others.
  """

  def __init__(self, devices: Devices, state, sharded: tuple[str, ...]):
    """Finds out which leaves of a state are sharded.

    Args:
      devices: of the job.
      state: any state of the run, or its shapes; only its structure matters.
      sharded: names of the layers, see `sharded_layers`.
    """

    def axis(path, leaf):
      del leaf
      keys = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
      return None if keys.isdisjoint(sharded) else 0

    self._devices = devices
    self.sharded = sharded
    self.state_axes = jax.tree_util.tree_map_with_path(axis, state) if sharded else None

  def model(self, model: AlexNet) -> AlexNet:
    """The same net as a device has it."""
    return as_subclass(model, ShardedAlexNet, sharded=self.sharded)

  def pmean(self, means):
    """Averages (gradients, metrics); gradients of sharded layers are sums over all images."""
    gradients, metrics = means
    count = self._devices.global_count
    own = {name: jax.tree.map(lambda g: g / count, gradients[name]) for name in self.sharded}
    rest = {name: leaves for name, leaves in gradients.items() if name not in own}
    rest, metrics = pmean((rest, metrics))
    return rest | own, metrics

  def recipe(self, recipe: Recipe) -> Recipe:
    """The same recipe; its optimizer sees all columns of the sharded layers."""
    update = functools.partial(recipe.optimizer.update, squares=self.squares)
    return dataclasses.replace(
      recipe, optimizer=optax.GradientTransformationExtraArgs(recipe.optimizer.init, update)
    )

  def global_norm(self, gradients):
    """Like `optax.tree.norm`, over all columns of the sharded layers."""
    return jnp.sqrt(optax.tree.sum(self.squares(gradients)))

  def squares(self, tree):
    """Like `optimizer.squares`, over all columns of the sharded layers."""
    sums = optimizer.squares(tree)
    own = {name: sums[name] for name in self.sharded}
    return sums | lax.psum(own, AXIS) if own else sums

  def program(self, program: Program) -> Program:
    """Makes a program whose step accepts replicated states of one that takes `state_axes` only."""
    if not self.sharded:
      return program

    def train_step(state, batch):
      return program.train_step(self.shard_state(state), batch)

    def compiled(state, batch):
      return program.train_step.compiled(jax.eval_shape(self.shard_state, state), batch)

    train_step.compiled = compiled  # type: ignore[attr-defined]
    return dataclasses.replace(program, train_step=train_step, replicated=self.gather_state)

  def shard_state(self, state):
    """Maps a replicated state to one with `state_axes`, and such a one to itself."""
    if state.params[self.sharded[0]]['bias'].ndim > 1:
      return state
    return self._shard(state, self._devices.per_device(0))

  @functools.cached_property
  def _shard(self):
    def part(leaf):
      size = leaf.shape[-1] // self._devices.global_count
      return lax.dynamic_slice_in_dim(leaf, lax.axis_index(AXIS) * size, size, axis=-1)

    # On the devices, since only they know their order. pmap needs at least one mapped argument.
    return self._devices.pmap(
      lambda state, _: self._map_sharded(part, state), in_axes=(None, 0), out_axes=self.state_axes
    )

  @functools.cached_property
  def gather_state(self):
    """The inverse of `shard_state`; every process has to call it."""

    def all_columns(leaf):
      return lax.all_gather(leaf, AXIS, axis=leaf.ndim - 1, tiled=True)

    return self._devices.pmap(
      functools.partial(self._map_sharded, all_columns), in_axes=(self.state_axes,), out_axes=None
    )

  def _map_sharded(self, function: Callable, state):
    """Applies a function to the leaves of sharded layers."""
    return jax.tree.map(
      lambda axis, leaf: leaf if axis is None else function(leaf),
      self.state_axes,
      state,
      is_leaf=lambda axis: axis is None,
    )
