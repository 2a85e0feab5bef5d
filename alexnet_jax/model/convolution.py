"""Convolutions with shared filters (optionally in groups) and with a filter per position."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.pooling import taps

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """Cross-correlates images with filters; no bias.

  Args:
    x: images, (N, H, W, C).
    kernel: filters, (kh, kw, C // groups, O). Filters g*O/groups .. (g+1)*O/groups - 1 see only
      the g-th of `groups` contiguous parts of the channels: the 2012 net's two towers.
    stride: step between filter positions, in both directions.
    padding: zero rows (above, below) and columns (left, right).
    groups: number of groups; it divides C and O.

  Returns:
    (N, 1 + (H + above + below - kh) // stride, likewise, O), of x's type.
  """
  convolve = partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if groups == 1:
    return convolve(x, kernel)

  def one_by_one(x, kernel):
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([convolve(*part) for part in parts], -1)

  # cuDNN takes groups as they lie, a TPU those that fill its lanes; elsewhere one call of all is
  # slower than one of each.
  at_once = partial(convolve, feature_group_count=groups)
  on_tpu = at_once if kernel.shape[2] >= 128 else one_by_one
  return lax.platform_dependent(x, kernel, cuda=at_once, tpu=on_tpu, default=one_by_one)


def locally_connected(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: Padding = ((0, 0), (0, 0)),
) -> jax.Array:
  """Like `conv`, but every output position has filters of its own (cuda-convnet's `local`).

  Args:
    x: images, (N, H, W, C).
    kernel: (Ho, Wo, k, k, C, O), with (Ho, Wo) the size of the output.
    stride: step between positions, in both directions.
    padding: zero rows (above, below) and columns (left, right).

  Returns:
    (N, Ho, Wo, O), of x's type.
  """
  *size, k, _, channels, features = kernel.shape
  # Each pixel is in up to k * k patches, whose gradients are added in float32.
  padded = jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))
  patches = jnp.concatenate(list(taps(padded, k, stride)), -1).astype(x.dtype)
  filters = kernel.reshape(*size, k * k * channels, features)
  return jnp.einsum('nhwk,hwko->nhwo', patches, filters)
