"""Convolutions by oneDNN, which jaxlib's CPU backend contains but does not call by itself.

XLA:CPU leaves convolutions to Eigen.  oneDNN takes 50 to 80 % of Eigen's time for outputs and for
the gradient of the inputs, which is a convolution as well; for the gradient of the filters Eigen is
faster (docs/performance.md).  XLA has calls of oneDNN that its Linux wheels for x86 are built with
while nothing in them makes such calls; here they are written down as XLA's own rewriter would
(xla/service/cpu/onednn_contraction_rewriter.cc, onednn_config.proto).

That is no interface anybody promises to keep, and a configuration misread would give wrong numbers
or end the process: so only versions of jaxlib are asked that have been tested with it, all others
convolve as ever.  Nor can jaxlib write compiled programs with such calls to disk: they are compiled
anew at every start (`kept` of `Devices.map`).
"""

import functools
import json
import platform
import sys

import jax
import jax.numpy as jnp
from jaxlib.version import __version__ as jaxlib_version

from alexnet_jax import compilation_cache
from alexnet_jax.model import convolution
from alexnet_jax.model.convolution import Padding

_TESTED = ('0.10.2',)


@functools.cache
def available() -> bool:
  """Whether JAX computes on a CPU, with a jaxlib that calls oneDNN as written here."""
  if jaxlib_version not in _TESTED or (sys.platform, platform.machine()) != ('linux', 'x86_64'):
    return False
  if jax.default_backend() != 'cpu':
    return False
  try:  # jaxlib may have been built by somebody else, without oneDNN
    with compilation_cache.nothing_kept():
      one = jnp.ones((1, 1, 1, 1))
      return bool(jax.jit(conv)(one, one, jnp.ones(1)) == 2)
  except jax.errors.JaxRuntimeError:
    return False


def used(settings) -> bool:
  """Whether nets with the settings of config.model convolve by it here."""
  return settings.onednn and settings.compute_dtype == 'float32' and available()


def conv(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  stride: int = 1,
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """As `convolution.conv` plus a bias, (O,); float32 and where `available`.

  It has gradients, but no forward mode.
  """
  return _conv(x, kernel, bias, stride, padding, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv(x, kernel, bias, *settings):
  return _call((x, kernel, bias), *settings)


def _forward(x, kernel, bias, *settings):
  return _call((x, kernel, bias), *settings), (x, kernel)


def _backward(stride, padding, groups, saved, upstream):
  x, kernel = saved
  by_xla = functools.partial(convolution.conv, stride=stride, padding=padding, groups=groups)
  zeros = [
    (width - 1 - before, width - 1 - after)
    for width, (before, after) in zip(kernel.shape, padding, strict=False)
  ]
  if stride == 1 and min(map(min, zeros)) >= 0:
    dx = _call((upstream, _turned(kernel, groups)), 1, zeros, groups)
  else:  # of the nets here only the first layers, and nobody asks for the gradient of images
    dx = jax.vjp(lambda x: by_xla(x, kernel), x)[1](upstream)[0]
  (dkernel,) = jax.vjp(lambda kernel: by_xla(x, kernel), kernel)[1](upstream)
  return dx, dkernel, upstream.sum((0, 1, 2))


_conv.defvjp(_forward, _backward)


def _turned(kernel, groups):
  """Filters that lead from outputs to inputs: turned by 180 degrees, each group by itself."""
  kh, kw, inputs, outputs = kernel.shape
  parts = kernel[::-1, ::-1].reshape(kh, kw, inputs, groups, outputs // groups)
  return parts.transpose(0, 1, 4, 3, 2).reshape(kh, kw, outputs // groups, groups * inputs)


def _call(arrays, stride, padding, groups):
  """oneDNN's convolution of images with filters and, if there is a third array, plus a bias."""
  x, kernel, *bias = arrays
  images, *size, _ = x.shape
  *window, _, features = kernel.shape
  places = [
    (side + sum(zeros) - width) // stride + 1
    for side, zeros, width in zip(size, padding, window, strict=True)
  ]
  result = jax.ShapeDtypeStruct((images, *places, features), x.dtype)
  call = jax.ffi.ffi_call(
    '__onednn$convolution',
    result,
    custom_call_api_version=2,
    legacy_backend_config=_configuration(stride, padding, groups, ['BIAS' for _ in bias]),
  )
  return call(*arrays)


def _configuration(stride, padding, groups, fusions) -> str:
  """OneDnnConvolutionConfig of XLA's onednn_config.proto as JSON: arrays NHWC, filters HWIO."""
  data = {'dims': 4, 'data': {'batch_dim': 0, 'feature_dim': 3, 'spatial_dims': [1, 2]}}
  filters = {'input_feature_dim': 2, 'output_feature_dim': 3, 'spatial_dims': [0, 1]}
  window = {
    'strides': [stride, stride],
    'pad_left': [before for before, _ in padding],
    'pad_right': [after for _, after in padding],
    'window_dilations': [1, 1],
  }
  convolution = {
    'dims': 4,
    'input': data,
    'kernel': {'dims': 4, 'filter': filters},
    'output': data,
    'window': window,
    'feature_groups': groups,
    'fusions': {'ops': fusions},
  }
  return json.dumps({'onednn_conv_config': convolution})
