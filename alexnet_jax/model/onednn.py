"""Convolutions by oneDNN, which jaxlib's CPU backend contains but does not call by itself.

XLA:CPU leaves convolutions to Eigen.  oneDNN takes 50 to 80 % of Eigen's time for outputs and for
the gradient of the inputs, which is a convolution as well; for the gradient of the filters Eigen is
faster (docs/performance.md).  XLA has calls of oneDNN that its Linux wheels for x86 are built with
while nothing in them makes such calls; here they are written down as XLA's own rewriter would
(xla/service/cpu/onednn_contraction_rewriter.cc, onednn_config.proto).

That is no interface anybody promises to keep, and a configuration misread would give wrong numbers
or end the process: so only versions of jaxlib do that were compared with XLA (tests/test_ops.py).
Nor can jaxlib write compiled programs with such calls to disk: every start compiles them (`cache`
of `Devices.pmap`).
"""

import functools
import json
import platform
import sys

import jax
from jaxlib.version import __version__ as jaxlib_version

from alexnet_jax.errors import UserError
from alexnet_jax.model import convolution
from alexnet_jax.model.convolution import Padding
from alexnet_jax.runtime import cpu

_COMPARED = ('0.10.', '0.11.', '0.12.')  # versions of jaxlib


def used(settings, device: str) -> bool:
  """Whether a net with the settings of config.model convolves by oneDNN.

  `auto` means on CPUs with AVX-512 only: with AVX2 it is no faster than Eigen, and programs with it
  are not cached on disk.

  Args:
    settings: config.model.
    device: what the net is built for, such as 'cpu'.

  Raises:
    UserError: `model.onednn=on` where it cannot be.
  """
  if settings.onednn == 'off' or (settings.onednn == 'auto' and not cpu.has_avx512()):
    return False
  if settings.compute_dtype != 'float32':
    obstacle = f'it computes in float32, not in model.compute_dtype={settings.compute_dtype}'
  elif device != 'cpu':
    obstacle = f'it is for CPUs, and this is a {device}'
  elif not available():
    obstacle = f'jaxlib {jaxlib_version} here does not call it, or was never compared with XLA'
  else:
    return True
  if settings.onednn == 'on':
    raise UserError(f'config.model.onednn=on: {obstacle}; use auto or off')
  return False


@functools.cache
def available() -> bool:
  """Whether jaxlib is of a version that calls oneDNN as written here, and was built with it."""
  return (
    (sys.platform, platform.machine()) == ('linux', 'x86_64')
    and jaxlib_version.startswith(_COMPARED)
    and cpu.jaxlib_contains(b'__onednn$convolution')
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def conv_bias(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  stride: int = 1,
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """`convolution.conv` plus a bias, (O,); float32, on a CPU where `available`; no forward mode."""
  return _call((x, kernel, bias), stride, padding, groups)


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
    dx = _call((upstream, _rotated(kernel, groups)), 1, zeros, groups)
  else:  # first layers only, of whose inputs no gradient is asked
    dx = jax.vjp(lambda x: by_xla(x, kernel), x)[1](upstream)[0]
  (dkernel,) = jax.vjp(lambda kernel: by_xla(x, kernel), kernel)[1](upstream)
  return dx, dkernel, upstream.sum((0, 1, 2))


conv_bias.defvjp(_forward, _backward)


def _rotated(kernel, groups):
  """Filters of the transposed convolution: rotated by 180 degrees, in each group."""
  kh, kw, inputs, outputs = kernel.shape
  parts = kernel[::-1, ::-1].reshape(kh, kw, inputs, groups, outputs // groups)
  return parts.transpose(0, 1, 4, 3, 2).reshape(kh, kw, outputs // groups, groups * inputs)


def _call(arrays, stride, padding, groups):
  """oneDNN's convolution of images with filters and, if there is a third array, plus a bias."""
  x, kernel, *bias = arrays
  by_xla = functools.partial(convolution.conv, stride=stride, padding=padding, groups=groups)
  return jax.ffi.ffi_call(
    '__onednn$convolution',
    jax.eval_shape(by_xla, x, kernel),
    custom_call_api_version=2,
    legacy_backend_config=_configuration(stride, padding, groups, ['BIAS' for _ in bias]),
  )(*arrays)


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
  contraction = {
    'dims': 4,
    'input': data,
    'kernel': {'dims': 4, 'filter': filters},
    'output': data,
    'window': window,
    'feature_groups': groups,
    'fusions': {'ops': fusions},
  }
  return json.dumps({'onednn_conv_config': contraction})
