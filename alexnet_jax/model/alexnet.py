"""The Flax module that computes a table of layers."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alexnet_jax.model import layers, onednn
from alexnet_jax.model.batch_norm import BatchNormalization
from alexnet_jax.model.convolution import conv, locally_connected
from alexnet_jax.model.normalization import local_response_norm, spatial_response_norm
from alexnet_jax.model.pooling import avg_pool, max_pool


class AlexNet(nn.Module):
  """Runs the rows of `table` from top to bottom.

  Attributes:
    table: the layers, see `layers.py`.
    compute_dtype: float32 or bfloat16, the type of activations and of what products take.  All
      sums are float32 in either case, as are parameters, their gradients and the logits.
    axis_name: the pmapped axis over which batch normalization takes its moments; None on one
      device.
    ghost_batch: when positive, batch normalization takes its moments over this many images.
    onednn: whether convolutions are oneDNN's, see `onednn.py`; float32 only.
  """

  table: layers.Table
  compute_dtype: Any = jnp.float32
  axis_name: str | None = None
  ghost_batch: int = 0
  onednn: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False, keys: jax.Array | None = None
  ) -> jax.Array:
    """Maps images to logits.

    Args:
      images: float32 (N, H, W, 3), after mean subtraction.
      train: True drops units and normalizes by the moments of the batch.
      keys: one PRNG key per image, (N,); needed when `train` and the table has dropout.

    Returns:
      float32 (N, features of the last row).  With the collection `intermediates` mutable, its
      `outputs` holds every row's output by the row's name.
    """
    x, outputs = images.astype(self.compute_dtype), {}
    for index, row in enumerate(self.table):
      with jax.named_scope(row.name):  # profiles show it; rows without weights have no other name
        x = self._run(row, x, train, keys, index)
      outputs[row.name] = x
    # In one piece: a name of its own for every output would collide with the layer's parameters.
    self.sow('intermediates', 'outputs', outputs, reduce_fn=lambda _, new: new)
    return x

  def _run(self, row, x, train, keys, index):
    match row:
      case layers.Conv() | layers.Dense():  # Local is a Conv
        return self._weighted(row, x)
      case layers.Relu():
        return nn.relu(x)
      case layers.Tanh():
        return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)
      case layers.MaxPool():
        pool = avg_pool if isinstance(row, layers.AvgPool) else max_pool
        if not row.ceil:
          x = x[:, : row.covered(x.shape[1]), : row.covered(x.shape[2])]
        return pool(x, row.window, row.stride)
      case layers.ResponseNorm():
        return local_response_norm(
          x, size=row.size, alpha=row.alpha, beta=row.beta, k=row.k, groups=row.groups
        )
      case layers.SpatialNorm():
        return spatial_response_norm(x, size=row.size, alpha=row.alpha, beta=row.beta, k=row.k)
      case layers.BatchNorm():
        return BatchNormalization(
          row.decay, row.epsilon, self.axis_name, self.ghost_batch, row.affine, name=row.name
        )(x, train)
      case layers.Dropout():
        return dropout(x, row.keep, row.inverted, train, keys, index)
    raise TypeError(f'no computation for layer {row}')

  def _weighted(self, row, x):
    dtype = jnp.float32 if row.name == self.table[-1].name else self.compute_dtype
    return Weighted(row, dtype, self.onednn, name=row.name)(x)


def as_subclass(model: AlexNet, kind: Callable[..., AlexNet], **attributes) -> AlexNet:
  """The same net as a module of the subclass `kind`, which may have further attributes."""
  own = {field.name: getattr(model, field.name) for field in dataclasses.fields(AlexNet)}
  return kind(**own, **attributes)


class Weighted(nn.Module):
  """A convolution, locally connected or dense layer with its kernel and bias, float32."""

  row: layers.Conv | layers.Dense
  output_dtype: Any
  onednn: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    row = self.row
    shapes = row.parameters(x.shape[1:])
    kernel_init, bias_init = _initializers(row, shapes['kernel'])
    kernel = self.param('kernel', kernel_init, shapes['kernel'], jnp.float32).astype(x.dtype)
    bias = self.param('bias', bias_init, shapes['bias'], jnp.float32)

    def biased(products):
      # In float32: the bias's gradient is a sum over all positions, which bfloat16 cuts short.
      return (products.astype(jnp.float32) + bias).astype(self.output_dtype)

    if isinstance(row, layers.Dense):
      flat = x.reshape(x.shape[0], -1)
      return biased(jnp.matmul(flat, kernel, preferred_element_type=self.output_dtype))
    padding = (row.edge_padding(x.shape[1]), row.edge_padding(x.shape[2]))
    if isinstance(row, layers.Local):
      return biased(locally_connected(x, kernel, stride=row.stride, padding=padding))
    if self.onednn:
      return onednn.conv_bias(x, kernel, bias, row.stride, padding, row.groups)
    return biased(conv(x, kernel, stride=row.stride, padding=padding, groups=row.groups))


def _initializers(row, kernel_shape):
  """Those of the kernel and of the bias."""
  fan_in = np.prod(kernel_shape[2:-1] if isinstance(row, layers.Local) else kernel_shape[:-1])
  if row.init == 'torch':
    bound = 1 / np.sqrt(fan_in)
    uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
    return uniform, uniform
  std = np.sqrt(2 / fan_in) if row.init == 'he' else row.init
  return nn.initializers.normal(std), nn.initializers.constant(row.bias)


def dropout(
  x: jax.Array, keep: float, inverted: bool, train: bool, keys: jax.Array | None, layer: int
) -> jax.Array:
  """Drops units of each image by a mask that depends on the image's key and the layer alone.

  Not inverted, as in 2012 (layer.cu HiddenSexLayer; paper section 4.2): training does not rescale
  and the test multiplies all units by `keep`.

  Args:
    x: (N, ...).
    keep: probability of keeping a unit.
    inverted: divide by `keep` in training, and do nothing in the test.
    train: whether to drop.
    keys: one PRNG key per image, (N,).
    layer: number of the layer, folded into the keys.

  Returns:
    As x.
  """
  if not train:
    return x if inverted else (x.astype(jnp.float32) * keep).astype(x.dtype)
  if keys is None:
    raise ValueError('training with dropout needs `keys`, one PRNG key per image')

  def mask(key):
    return jax.random.bernoulli(jax.random.fold_in(key, layer), keep, x.shape[1:])

  kept = jnp.where(jax.vmap(mask)(keys), x, jnp.zeros((), x.dtype))
  return (kept.astype(jnp.float32) / keep).astype(x.dtype) if inverted else kept
