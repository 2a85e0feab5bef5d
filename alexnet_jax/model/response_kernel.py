"""ReLU and local response norm as one GPU kernel each way; not measured on a GPU."""

from functools import partial

import jax

from alexnet_jax.model.kernels import Norm, Tile, call, load, store


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def response(x: jax.Array, norm: Norm) -> jax.Array:
  """`normalization.local_response_norm`, after a ReLU if `norm` has one before it.

  Args:
    x: float32 or bfloat16 (N, H, W, C).
    norm: what to compute.

  Returns:
    An array like x; float32 inside.
  """
  return _call(_forward_kernel, norm, x)


def _forward(x, norm):
  return response(x, norm), x


def _backward(norm, x, gradient):
  return (_call(_backward_kernel, norm, x, gradient),)


response.defvjp(_forward, _backward)


def _call(kernel, norm, x, *others):
  _, height, width, channels = x.shape
  kernel = partial(kernel, norm=norm, channels=channels, length=width * channels)
  (result,) = call(kernel, (height, width * channels), [x], x, *others)
  return result


def _forward_kernel(x_ref, y_ref, *, norm, channels, length):
  tile = Tile(channels, norm)
  at, mine = tile.row * length + tile.index, tile.index < length
  near = tile.near(x_ref, at, mine, norm.window)
  power, _ = norm.powers(norm.denominator(near))
  store(y_ref, at, mine, near[0] * power)


def _backward_kernel(x_ref, gradient_ref, dx_ref, *, norm, channels, length):
  tile = Tile(channels, norm)
  at, mine = tile.row * length + tile.index, tile.index < length
  near = tile.near(x_ref, at, mine, norm.surroundings)
  upstream = {t: load(gradient_ref, at + t, mine & tile.has(t)) for t in norm.holders}
  store(dx_ref, at, mine, norm.gradient(near, upstream))
