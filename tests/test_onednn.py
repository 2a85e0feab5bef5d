"""Where and how convolutions are oneDNN's; that they compute the same is in test_ops.py."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax.model import layers, onednn
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.nets import NETS

needs_onednn = pytest.mark.skipif(
  not onednn.available(), reason='this jaxlib is not known to call oneDNN'
)


def test_the_installed_jaxlib_is_known():
  """Fails with a new jaxlib: if test_ops.py passes with it in `_TESTED`, it belongs there."""
  here = sys.platform == 'linux' and platform.machine() == 'x86_64'
  assert onednn.available() == (here and jax.default_backend() == 'cpu')


def test_no_other_jaxlib_is_asked(monkeypatch):
  onednn.available.cache_clear()
  monkeypatch.setattr(onednn, 'jaxlib_version', '0.10.99')
  assert not onednn.available()
  onednn.available.cache_clear()


def calls(net, **settings):
  """How often the forward pass of a net calls oneDNN."""
  model = AlexNet(NETS[net](10), **settings)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, {'params': jax.random.key(0)}, images)
  return str(jax.make_jaxpr(model.apply)(variables, images)).count('__onednn$convolution')


def test_every_convolution_is_its():
  convolutions = sum(isinstance(row, layers.Conv) for row in NETS['krizhevsky2012'](10))
  assert calls('krizhevsky2012', onednn=True) == convolutions == 5
  assert calls('krizhevsky2012') == 0


@needs_onednn
def test_only_float32_nets_use_it():
  settings = configs.default().model
  assert onednn.used(settings)
  settings.compute_dtype = 'bfloat16'
  assert not onednn.used(settings)
  settings.compute_dtype, settings.onednn = 'float32', False
  assert not onednn.used(settings)


@needs_onednn
def test_eight_devices_at_once_agree_with_one():
  """More devices than cores share one pool of threads: nobody waits for ever, no bit changes."""
  random = np.random.default_rng(0)
  x = random.normal(size=(8, 16, 27, 27, 24)).astype(np.float32)
  kernel = random.normal(size=(5, 5, 24, 64)).astype(np.float32)

  def both(x, kernel):
    bias = jnp.arange(64.0)
    y, pull = jax.vjp(lambda *each: onednn.conv(*each, bias, padding=((2, 2), (2, 2))), x, kernel)
    return y, pull(y)[0]

  alone = [jax.jit(both)(part, kernel) for part in x]
  mapped = jax.pmap(both, in_axes=(0, None), devices=jax.devices()[:8])
  for _ in range(10):
    together = mapped(x, kernel)
    for place, expected in enumerate(alone):
      found = jax.tree.map(lambda each, place=place: each[place], together)
      jax.tree.map(np.testing.assert_array_equal, found, expected)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from alexnet_jax import compilation_cache
from alexnet_jax.model import onednn
from alexnet_jax.train.parallel import Devices
compilation_cache.prepare_process()
assert onednn.available()
one = jnp.ones((1, 4, 8, 8, 3)), jnp.ones((3, 3, 3, 8))
conv = lambda x, k: onednn.conv(x, k, jnp.ones(8))
f = Devices().map(conv, in_axes=(0, None), out_axes=0, kept=False)
print(float(f(*one).sum()), f.compiled(*one).as_text().count('__onednn$convolution') > 0)
Devices().map(lambda x: jnp.fft.fft(x), in_axes=0, out_axes=0)(one[0])
"""


@needs_onednn
def test_its_programs_are_not_written(tmp_path):
  """jaxlib fails to, and JAX would warn, which is an error here; others are written as ever."""
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', PROGRAM],
    env={'PATH': '', 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
    | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [str(4.0 * 36 * 8 * 28), 'True']
  assert done.stderr == ''
  mapped = [file for file in tmp_path.iterdir() if file.name.startswith('jit__fun')]
  assert len(mapped) == 1  # not the convolution
