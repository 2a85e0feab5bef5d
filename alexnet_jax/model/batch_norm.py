"""Batch normalization whose result does not depend on how the batch is spread over devices."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class BatchNormalization(nn.Module):
  """Normalizes each channel by its mean and variance (Ioffe & Szegedy, arXiv 1502.03167).

  Moments are float32 and over the global batch: they are averaged over `axis_name`.  With
  `ghost_batch` they are over each run of that many images on a device instead (Hoffer et al.,
  arXiv 1705.08741), the explicit choice for very large batches.

  Attributes:
    decay: weight of the old value in the running moments that the test uses.
    epsilon: added to the variance.
    axis_name: pmapped axis, or None.
    ghost_batch: 0, or a divisor of the images on a device.
    affine: whether each channel has a learned scale and bias.
  """

  decay: float
  epsilon: float
  axis_name: str | None
  ghost_batch: int
  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x is (N, ..., C) of any float type; so is the result."""
    channels = x.shape[-1]
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    if self.affine:
      scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
      bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
    if not train:
      factor = scale * lax.rsqrt(running_var.value + self.epsilon)
      return (x * factor + (bias - running_mean.value * factor)).astype(x.dtype)

    images = self.ghost_batch or x.shape[0]
    groups = x.reshape(x.shape[0] // images, -1, channels).astype(jnp.float32)
    mean, square = groups.mean(1), jnp.square(groups).mean(1)
    if self.axis_name and not self.ghost_batch:
      mean, square = lax.pmean((mean, square), self.axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)
    if not self.is_initializing():
      for running, moments in ((running_mean, mean), (running_var, var)):
        average = moments.mean(0)
        if self.axis_name and self.ghost_batch:
          average = lax.pmean(average, self.axis_name)
        running.value = self.decay * running.value + (1 - self.decay) * average
    factor = scale * lax.rsqrt(var + self.epsilon)
    normalized = groups * factor[:, None] + (bias - mean * factor)[:, None]
    return normalized.reshape(x.shape).astype(x.dtype)
