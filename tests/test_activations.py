"""Units and signals at initialization: what makes the 2012 net learn from the first step.

The expected numbers were measured on photographs.  Here are generated images with the same power
spectrum, so shares of active units are held to .12 and signals to four tenths of themselves.
"""

import jax
import numpy as np
import pytest

from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet

COUNT = 6

pytestmark = pytest.mark.slow


def photographs(side):
  """float32 (COUNT, side, side, 3), 0..255: the 1/f spectrum of photographs, weak colors."""
  rng = np.random.default_rng(0)
  frequencies = np.fft.fftfreq(side)
  radius = np.hypot(frequencies[:, None], frequencies)
  radius[0, 0] = 1 / side

  def field(channels):
    spectrum = np.fft.fft2(rng.normal(size=(COUNT, channels, side, side))) / radius
    x = np.fft.ifft2(spectrum).real
    return (x / x.std()).transpose(0, 2, 3, 1)

  return np.clip(128 + 60 * field(1) + 20 * field(3), 0, 255).astype(np.float32)


def initial_weights(table, side):
  """Weights as the rows say; NumPy has drawn them before XLA has compiled the net's own draws."""
  rng = np.random.default_rng(1)
  return {
    row.name: {
      'kernel': np.float32(row.init) * rng.standard_normal(shapes['kernel'], np.float32),
      'bias': np.full(shapes['bias'], row.bias, np.float32),
    }
    for row, inputs, _ in layers.walk(table, (side, side, 3))
    if (shapes := row.parameters(inputs))
  }


def statistics(table, side):
  """Statistics of an untrained net, for 0-255 inputs and for unit-variance ones.

  Returns:
    A dict for each: shares of active units of conv4 and conv5, signal (standard deviation of a
    unit over the images) of fc7 and of the logits.  Nothing is dropped nor halved.
  """
  table = tuple(row for row in table if not isinstance(row, layers.Dropout))
  params = initial_weights(table, side)
  images = photographs(side)
  images -= images.mean(0)

  @jax.jit
  def outputs(params, images):
    _, state = AlexNet(table).apply({'params': params}, images, mutable=['intermediates'])
    return state['intermediates']['outputs']

  def measure(images):
    found = outputs(params, images)
    active = {name: float(np.mean(found[name] > 0)) for name in ('conv4', 'conv5')}
    signals = {'fc7': 'relu7', 'logits': 'fc8'}
    return active | {
      name: float(np.sqrt(np.var(found[row], 0).mean())) for name, row in signals.items()
    }

  return measure(images), measure(images / images.std())


@pytest.fixture(scope='module')
def measured():
  """{net: statistics} for 0-255 inputs, and for unit-variance ones.

  Caffe's two nets have half their channels: quicker, with the same signals.
  """
  found = {}
  for net in ('krizhevsky2012', 'paper', 'caffenet', 'caffe'):
    table, side = nets.NETS[net](1000), 224
    if net.startswith('caffe'):
      table, side = layers.narrow(table, 2), 227
    found[net] = statistics(table, side)
  return tuple({net: pair[i] for net, pair in found.items()} for i in (0, 1))


@pytest.mark.parametrize(
  'net, conv4, conv5, fc7, logits',
  [
    ('krizhevsky2012', 0.71, 0.67, 0.257, 0.164),
    ('paper', 1.00, 0.99, 0.018, 0.0114),
    ('caffenet', 0.96, 0.98, 0.013, 0.0082),
    ('caffe', 0.61, 0.76, 0.008, 0.0049),
  ],
)
def test_shares_of_active_units_and_signals(measured, net, conv4, conv5, fc7, logits):
  found = measured[0][net]
  assert found['conv4'] == pytest.approx(conv4, abs=0.12)
  assert found['conv5'] == pytest.approx(conv5, abs=0.12)
  assert found['fc7'] == pytest.approx(fc7, rel=0.4)
  assert found['logits'] == pytest.approx(logits, rel=0.4)


def test_the_2012_net_carries_the_strongest_signal(measured):
  raw, _ = measured
  logits = {net: found['logits'] for net, found in raw.items()}
  assert 8 < logits['krizhevsky2012'] / logits['paper'] < 25  # photographs: 14
  assert logits['paper'] > logits['caffenet'] > logits['caffe']


def test_unit_variance_inputs_starve_the_net(measured):
  raw, unit = measured
  signal = raw['krizhevsky2012']['logits']
  assert 15 < signal / unit['krizhevsky2012']['logits'] < 60  # photographs: 30
  assert 300 < signal / unit['paper']['logits'] < 1500  # 660
  assert unit['krizhevsky2012']['conv4'] == pytest.approx(0.93, abs=0.05)
  assert unit['paper']['conv4'] > 0.9999
