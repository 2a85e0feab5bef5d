"""Where and how convolutions are oneDNN's; that they compute the same is in test_ops.py."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import onednn
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.nets import NETS
from alexnet_jax.runtime import cpu

needs_onednn = pytest.mark.skipif(not onednn.available(), reason='this jaxlib does not call oneDNN')


@pytest.mark.skipif(
  (sys.platform, platform.machine()) != ('linux', 'x86_64'), reason='oneDNN is in x86 wheels alone'
)
def test_versions_that_were_compared_call_it(monkeypatch):
  if jax.__version__.startswith(('0.10.', '0.11.', '0.12.')):
    assert onednn.available()
  monkeypatch.setattr(onednn, 'jaxlib_version', '0.99')
  assert not onednn.available.__wrapped__()


def test_every_convolution_is_its():
  def calls(onednn):
    model = AlexNet(NETS['krizhevsky2012'](10), onednn=onednn)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return str(jax.make_jaxpr(model.apply)(variables, images)).count('__onednn$convolution')

  assert calls(True) == 5 and calls(False) == 0


@pytest.mark.parametrize('field', ['auto', 'on', 'off'])
@pytest.mark.parametrize(
  'dtype, device, available, obstacle',
  [
    ('float32', 'cpu', True, None),
    ('float32', 'gpu', True, 'it is for CPUs, and this is a gpu; use auto or off'),
    ('bfloat16', 'cpu', True, 'not in model.compute_dtype=bfloat16'),
    ('float32', 'cpu', False, 'does not call it'),
  ],
)
@pytest.mark.parametrize('avx512', [True, False])
def test_when_it_is_used(field, dtype, device, available, obstacle, avx512, monkeypatch):
  settings = configs.default().model
  assert settings.onednn == 'auto'
  settings.onednn, settings.compute_dtype = field, dtype
  monkeypatch.setattr(cpu, 'has_avx512', lambda: avx512)
  monkeypatch.setattr(onednn, 'available', lambda: available)
  if field == 'on' and obstacle:
    with pytest.raises(UserError, match=f'^config.model.onednn=on: .*{obstacle}'):
      onednn.used(settings, device)
  else:
    fast = field == 'on' or (field == 'auto' and avx512)
    assert onednn.used(settings, device) == (fast and not obstacle)


@needs_onednn
def test_eight_devices_at_once_agree_with_one():
  """More devices than cores share one pool of threads: nobody waits for ever, no bit changes."""
  random = np.random.default_rng(0)
  x = random.normal(size=(8, 16, 27, 27, 24)).astype(np.float32)
  kernel = random.normal(size=(5, 5, 24, 64)).astype(np.float32)

  def both(x, kernel):
    bias = jnp.arange(64.0)
    y, pull = jax.vjp(lambda *each: onednn.conv_bias(*each, bias, 1, ((2, 2), (2, 2))), x, kernel)
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
from alexnet_jax.runtime import compilation_cache
from alexnet_jax.model import onednn
from alexnet_jax.train.devices import Devices
compilation_cache.enable()
one = jnp.ones((1, 4, 8, 8, 3)), jnp.ones((3, 3, 3, 8))
conv = lambda x, k: onednn.conv_bias(x, k, jnp.ones(8))
f = Devices().pmap(conv, in_axes=(0, None), out_axes=0, cache=False)
print(float(f(*one).sum()), f.compiled(*one).as_text().count('__onednn$convolution') > 0)
Devices().pmap(lambda x: jnp.fft.fft(x), in_axes=0, out_axes=0)(one[0])
"""


@pytest.mark.slow
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
