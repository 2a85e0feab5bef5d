"""Convolutions by oneDNN, which jaxlib's CPU backend contains but does not call by itself.

XLA:CPU leaves convolutions to Eigen.  oneDNN takes 50 to 80 % of Eigen's time for outputs and for
the gradient of the inputs, which is a convolution as well; for the gradient of the filters Eigen is
faster (docs/performance.md).  XLA has calls of oneDNN that its Linux wheels for x86 are built with
while nothing in them makes such calls; here they are written down as XLA's own rewriter would
(xla/service/cpu/onednn_contraction_rewriter.cc, onednn_config.proto).

That is no interface anybody promises to keep, and a configuration misread would give wrong numbers
or end the process: so another process tries it first (`available`).  Nor can jaxlib write compiled
programs with such calls to disk: they are compiled anew at every start (`cache` of `Devices.pmap`).
"""

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.version import __version__ as jaxlib_version

from alexnet_jax.errors import UserError
from alexnet_jax.model import convolution
from alexnet_jax.model.convolution import Padding
from alexnet_jax.runtime import compilation_cache, cpu

_TRIAL_SECONDS = 120  # a few are enough


def used(settings, platform: str | None) -> bool:
  """Whether a net with the settings of config.model convolves by oneDNN.

  `auto` means on CPUs with AVX-512 only: with AVX2 it is no faster than Eigen, and programs with it
  are not cached on disk.

  Args:
    settings: config.model.
    platform: what the net is built for, such as 'cpu', or None.

  Raises:
    UserError: `model.onednn=on` where it cannot be.
  """
  if settings.onednn == 'off' or (settings.onednn == 'auto' and not cpu.has_avx512()):
    return False
  if settings.compute_dtype != 'float32':
    obstacle = f'it computes in float32, not in model.compute_dtype={settings.compute_dtype}'
  elif platform != 'cpu':
    obstacle = f'it is for CPUs, and this is a {platform}'
  elif not available():
    obstacle = f'jaxlib {jaxlib_version} here does not call it, or not as expected'
  else:
    return True
  if settings.onednn == 'on':
    raise UserError(f'config.model.onednn=on: {obstacle}; use auto or off')
  return False


@functools.cache
def available() -> bool:
  """Whether jaxlib's CPU backend calls oneDNN as written here, with the right results.

  A child process tries it, for about two seconds; success is remembered in the compilation cache.
  """
  if (sys.platform, platform.machine()) != ('linux', 'x86_64'):
    return False
  library = cpu.jaxlib_library().stat()
  code = zlib.crc32(Path(__file__).read_bytes())
  name = f'onednn-{jaxlib_version}-{library.st_size}-{library.st_mtime_ns}-{code}'
  answer = None
  with contextlib.suppress(OSError, RuntimeError):  # no home, or nothing can be read there
    answer = compilation_cache.folder() / name
    if answer.exists():
      return True
  right = _tried()
  if right and answer:
    with contextlib.suppress(OSError):
      answer.touch()
  return right


def _tried() -> bool:
  """Whether `try_out` succeeds in a process of its own."""
  root = str(Path(__file__).parents[2])
  settings = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
    'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])),
  }
  program = f'from {__name__} import try_out; try_out()'
  try:
    done = subprocess.run(
      [sys.executable, '-c', program],
      env=os.environ | settings,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      timeout=_TRIAL_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return False
  return done.returncode == 0


def try_out() -> None:
  """Raises AssertionError unless values and gradients are those of XLA's own convolutions."""
  random = np.random.default_rng(0)
  for stride, padding, groups in ((1, ((1, 1), (1, 1)), 2), (2, ((0, 1), (2, 0)), 1)):
    settings = {'stride': stride, 'padding': padding, 'groups': groups}
    shapes = (2, 9, 8, 6), (3, 3, 6 // groups, 10), (10,)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]

    def by_xla(x, kernel, bias, settings=settings):
      return convolution.conv(x, kernel, **settings) + bias

    results = (
      jax.jit(functools.partial(_value_and_gradients, convolve))(*arrays)
      for convolve in (functools.partial(conv, **settings), by_xla)
    )
    for found, expected in zip(*results, strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def _value_and_gradients(convolve, *arrays):
  y, pull = jax.vjp(convolve, *arrays)
  return y, *pull(y)


def conv(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  stride: int = 1,
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """`convolution.conv` plus a bias, (O,); float32, on a CPU where `available`; no forward mode."""
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
  else:  # first layers only, of whose inputs no gradient is asked
    dx = jax.vjp(lambda x: by_xla(x, kernel), x)[1](upstream)[0]
  (dkernel,) = jax.vjp(lambda kernel: by_xla(x, kernel), kernel)[1](upstream)
  return dx, dkernel, upstream.sum((0, 1, 2))


_conv.defvjp(_forward, _backward)


def _turned(kernel, groups):
  """Filters of the transposed convolution: rotated by 180 degrees, in each group."""
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
