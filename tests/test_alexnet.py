"""Whole nets against torch programs written from the papers and prototxts, with the same weights.

Every reference takes weights in the layout of `params`, {layer: {'kernel', 'bias'}}, images
(N, C, H, W), and a function that drops units where the net does.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.narrow import narrow

from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet, dropout
from alexnet_jax.model.batch_norm import BatchNormalization
from alexnet_jax.train.optimizer import krizhevsky_momentum

torch = pytest.importorskip('torch')
F = torch.nn.functional


# The references.


def conv(x, layer, **geometry):
  return F.conv2d(x, layer['kernel'].permute(3, 2, 0, 1), layer['bias'], **geometry)


def dense(x, layer):
  return x.permute(0, 2, 3, 1).flatten(1) @ layer['kernel'] + layer['bias']


def local(x, layer):
  """A 3x3 layer of padding 1 with weights of its own for each position."""
  height, width, _, _, channels, features = layer['kernel'].shape
  patches = F.unfold(x, 3, padding=1).view(len(x), channels, 9, height, width)
  kernel = layer['kernel'].reshape(height, width, 9, channels, features)
  out = torch.einsum('nckhw,hwkco->nohw', patches, kernel)
  return out + layer['bias'].permute(2, 0, 1)


def pool(x):
  return F.max_pool2d(x, 3, 2, ceil_mode=True)


def mean_pool(x):
  return F.avg_pool2d(x, 3, 2, ceil_mode=True)


def spatial_norm(x, size, scale):
  """Divides by (1 + scale * mean of the squares around, outside counting as zero)^.75."""
  return x / (1 + scale * F.avg_pool2d(x * x, size, 1, size // 2)) ** 0.75


def krizhevsky2012(w, x, drop):
  def tower_norm(x):  # of unfolded neighbors in the tower's own half of the maps
    def half(a):
      padded = F.pad(a * a, (0, 0, 0, 0, 2, 2))
      return a / (2 + 1e-4 / 5 * padded.unfold(1, 5, 1).sum(-1)) ** 0.75

    return torch.cat([half(a) for a in x.chunk(2, 1)], 1)

  x = conv(F.pad(x, (0, 3, 0, 3)), w['conv1'], stride=4)
  x = pool(tower_norm(x)).relu()
  x = conv(x, w['conv2'], padding=2, groups=2).relu()
  x = pool(spatial_norm(tower_norm(x), 5, 0.001))
  x = conv(x, w['conv3'], padding=1).relu()
  x = conv(x, w['conv4'], padding=1, groups=2).relu()
  x = pool(conv(x, w['conv5'], padding=1, groups=2)).relu()
  x = drop('drop6', dense(x, w['fc6']).relu())
  x = drop('drop7', (x @ w['fc7']['kernel'] + w['fc7']['bias']).relu())
  return x @ w['fc8']['kernel'] + w['fc8']['bias']


def caffe(w, x, drop, pool_first=False):
  """bvlc_alexnet's deploy.prototxt, or CaffeNet's, which pools first."""

  def norm(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

  def block(x):
    return norm(pool(x)) if pool_first else pool(norm(x))

  x = block(conv(x, w['conv1'], stride=4).relu())
  x = block(conv(x, w['conv2'], padding=2, groups=2).relu())
  x = conv(x, w['conv3'], padding=1).relu()
  x = conv(x, w['conv4'], padding=1, groups=2).relu()
  x = pool(conv(x, w['conv5'], padding=1, groups=2).relu())
  x = drop('drop6', dense(x, w['fc6']).relu())
  x = drop('drop7', (x @ w['fc7']['kernel'] + w['fc7']['bias']).relu())
  return x @ w['fc8']['kernel'] + w['fc8']['bias']


def owt(w, x, drop):
  """torchvision's alexnet.py; test_weights.py has it under its own names."""
  x = pool(conv(x, w['conv1'], stride=4, padding=2).relu())
  x = pool(conv(x, w['conv2'], padding=2).relu())
  x = conv(conv(x, w['conv3'], padding=1).relu(), w['conv4'], padding=1).relu()
  x = pool(conv(x, w['conv5'], padding=1).relu())
  x = drop('drop5', x.permute(0, 2, 3, 1)).flatten(1)
  x = drop('drop6', (x @ w['fc6']['kernel'] + w['fc6']['bias']).relu())
  x = (x @ w['fc7']['kernel'] + w['fc7']['bias']).relu()
  return x @ w['fc8']['kernel'] + w['fc8']['bias']


def cifar_18pct(w, x, drop):
  del drop
  x = spatial_norm(pool(conv(x, w['conv1'], padding=2)).relu(), 3, 5e-5)
  x = spatial_norm(mean_pool(conv(x, w['conv2'], padding=2).relu()), 3, 5e-5)
  x = mean_pool(conv(x, w['conv3'], padding=2).relu())
  return dense(x, w['fc10'])


def cifar_11pct(w, x, drop):
  del drop

  def norm(x):
    return F.local_response_norm(x, 9, alpha=0.001, beta=0.75, k=1.0)

  x = norm(pool(conv(x, w['conv1'], padding=2).relu()))
  x = pool(norm(conv(x, w['conv2'], padding=2).relu()))
  x = local(local(x, w['local3']).relu(), w['local4']).relu()
  return dense(x, w['fc10'])


# Weights and the comparison.


def random_weights(table, shape, seed=0):
  """Weights that keep inputs of 0-255 at about their size, so that every norm has work to do."""
  rng = np.random.default_rng(seed)
  weights = {}
  for row, inputs, _ in layers.walk(table, shape):
    if not (sizes := row.parameters(inputs)):
      continue
    fan_in = math.prod(sizes['kernel'][-4:-1] if len(inputs) == 3 else sizes['kernel'][:-1])
    if isinstance(row, layers.Dense):
      fan_in = sizes['kernel'][0]
    std = np.float32(math.sqrt(2 / fan_in) / (100 if row is table[-1] else 1))
    weights[row.name] = {
      'kernel': std * rng.standard_normal(sizes['kernel'], np.float32),
      'bias': rng.normal(0, 5 if row is not table[-1] else 0.1, sizes['bias']).astype(np.float32),
    }
  return weights


def images_and_labels(count, shape, classes):
  rng = np.random.default_rng(7)
  return rng.normal(0, 60, (count, *shape)).astype(np.float32), rng.integers(0, classes, count)


def assert_close(actual, expected, tolerance, name=''):
  """Relative to the size of the whole array, in the mean and at the worst place."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape, name
  difference = np.abs(actual - expected)
  assert np.linalg.norm(difference) < tolerance * np.linalg.norm(expected), name
  assert difference.max() < 10 * tolerance * np.abs(expected).max(), name


def ours(table, weights, images, labels, keys=None):
  """Logits, loss and the gradient of the weights; in training if there are keys."""

  def loss(weights):
    logits = AlexNet(table).apply({'params': weights}, images, train=keys is not None, keys=keys)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
  return logits, gradients


def theirs(reference, weights, images, labels, drop):
  """As `ours`, in float64."""
  tensors = jax.tree.map(
    lambda a: torch.tensor(a, dtype=torch.float64, requires_grad=True), weights
  )
  x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64)
  logits = reference(tensors, x, drop)
  F.cross_entropy(logits, torch.tensor(labels)).backward()
  return logits.detach().numpy(), jax.tree.map(lambda t: t.grad.numpy(), tensors)


def masks_of(table, keys):
  """The function that drops what the net drops for these keys, as it stands in the table."""
  index = {row.name: i for i, row in enumerate(table)}

  def drop(name, x):
    row = table[index[name]]
    ones = jnp.ones(x.shape)
    return x * torch.tensor(
      np.asarray(dropout(ones, row.keep, row.inverted, keys is not None, keys, index[name]))
    )

  return drop


@pytest.mark.parametrize(
  'net, side, divisor, train',
  [
    (krizhevsky2012, 224, 8, False),
    (krizhevsky2012, 224, 8, True),
    (caffe, 227, 8, True),
    (owt, 224, 8, True),
    (cifar_18pct, 32, 1, True),
    (cifar_11pct, 24, 2, True),
  ],
)
def test_logits_and_gradients(net, side, divisor, train):
  table = nets.NETS[net.__name__](10)
  table = narrow(table, divisor) if divisor > 1 else table
  shape = (side, side, 3)
  weights = random_weights(table, shape)
  images, labels = images_and_labels(2, shape, 10)
  keys = jax.random.split(jax.random.key(3), 2) if train else None
  logits, gradients = ours(table, weights, images, labels, keys)
  expected, expected_gradients = theirs(net, weights, images, labels, masks_of(table, keys))
  assert_close(logits, expected, 1e-5)
  for layer, leaves in expected_gradients.items():
    for name, gradient in leaves.items():
      assert np.abs(gradient).max() > 0
      assert_close(gradients[layer][name], gradient, 1e-5, f'{layer} {name}')


def test_the_full_size_net():
  table, shape = nets.krizhevsky2012(), (224, 224, 3)
  weights = random_weights(table, shape)
  images, _ = images_and_labels(2, shape, 1000)
  logits = jax.jit(AlexNet(table).apply)({'params': weights}, images)
  with torch.no_grad():
    tensors = jax.tree.map(torch.tensor, weights)
    expected = krizhevsky2012(
      tensors, torch.tensor(images.transpose(0, 3, 1, 2)), lambda name, x: x / 2
    )
  assert logits.shape == (2, 1000)
  assert_close(logits, expected, 2e-5)


# Dropout.


@pytest.mark.parametrize('inverted', [False, True])
def test_dropout_keeps_its_share(inverted):
  x = jnp.full((100, 500), 3.0)
  keys = jax.random.split(jax.random.key(0), 100)
  y = np.asarray(dropout(x, 0.7, inverted, True, keys, 0))
  scale = 1 / 0.7 if inverted else 1
  np.testing.assert_allclose(np.unique(y), [0, 3 * scale], rtol=1e-6)
  standard_error = math.sqrt(0.7 * 0.3 / y.size)
  assert abs(np.mean(y > 0) - 0.7) < 4 * standard_error
  # Each image and each unit is dropped as often as chance has it: binomial spread.
  assert np.mean(y > 0, 1).std() == pytest.approx(math.sqrt(0.21 / 500), rel=0.3)
  assert np.mean(y > 0, 0).std() == pytest.approx(math.sqrt(0.21 / 100), rel=0.2)
  tested = dropout(x, 0.7, inverted, False, None, 0)
  np.testing.assert_allclose(tested, 3.0 if inverted else 3 * 0.7, rtol=1e-6)


def test_masks_depend_on_the_images_key_and_the_layer_alone():
  keys = jax.random.split(jax.random.key(0), 6)

  @jax.jit
  def masks(keys, layer):
    return dropout(jnp.ones((len(keys), 5, 40)), 0.5, False, True, keys, layer)

  together = np.asarray(masks(keys, 4))
  order = np.array([3, 0, 5])
  np.testing.assert_array_equal(masks(keys[order], 4), together[order])
  np.testing.assert_array_equal(masks(keys[2:3], 4)[0], together[2])
  assert np.mean(np.asarray(masks(keys, 5)) != together) == pytest.approx(0.5, abs=0.06)
  assert np.mean(together[0] != together[1]) == pytest.approx(0.5, abs=0.15)


def test_training_with_dropout_needs_keys():
  table = (layers.Dropout('drop'), layers.Dense('fc', 2))
  with pytest.raises(ValueError, match='keys'):
    AlexNet(table).init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), train=True)


def test_inverted_dropout_with_other_rates_is_the_same_training():
  """Half the weights, a quarter of the rate, four times the decay: equal to the last bit."""

  def table(inverted):
    return (
      layers.Dense('fc1', 16),
      layers.Relu('relu'),
      layers.Dropout('drop', inverted=inverted),
      layers.Dense('fc2', 3),
    )

  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
  weights = {
    name: {'kernel': jnp.asarray(rng.normal(size=shape), jnp.float32), 'bias': jnp.ones(shape[1])}
    for name, shape in {'fc1': (12, 16), 'fc2': (16, 3)}.items()
  }

  @jax.jit
  def gradients_of(inverted_weights, weights, keys):
    def loss(inverted, weights):
      logits = AlexNet(table(inverted)).apply({'params': weights}, images, train=True, keys=keys)
      return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    return jax.grad(loss, 1)(True, inverted_weights), jax.grad(loss, 1)(False, weights)

  def scaled(factor):  # of fc2's kernel, the layer above the dropout
    return {name: {'kernel': factor if name == 'fc2' else 1.0, 'bias': 1.0} for name in weights}

  def of(value, factor):
    return jax.tree.map(lambda f: jnp.float32(value * f), scaled(factor))

  weights_inverted = jax.tree.map(jnp.multiply, weights, scaled(0.5))
  optimizers = [krizhevsky_momentum(0.9, of(0.01, factor)) for factor in (4, 1)]
  states = [optimizers[0].init(weights_inverted), optimizers[1].init(weights)]
  updates_of = [
    jax.jit(functools.partial(optimizer.update, rates=of(0.1, factor)))
    for optimizer, factor in zip(optimizers, (0.25, 1), strict=True)
  ]
  for step in range(5):
    keys = jax.random.split(jax.random.key(step), 4)
    gradients = gradients_of(weights_inverted, weights, keys)
    params = [weights_inverted, weights]
    for i in (0, 1):
      updates, states[i] = updates_of[i](gradients[i], states[i], params[i])
      params[i] = jax.tree.map(np.add, params[i], updates)
    weights_inverted, weights = params
  jax.tree.map(
    np.testing.assert_array_equal,
    weights_inverted,
    jax.tree.map(jnp.multiply, weights, scaled(0.5)),
  )
  logits = [
    AlexNet(table(inverted)).apply({'params': params}, images)
    for inverted, params in ((True, weights_inverted), (False, weights))
  ]
  np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)
  with pytest.raises(AssertionError):  # the training above has moved them
    np.testing.assert_allclose(weights['fc2']['kernel'], weights_inverted['fc2']['kernel'])


# Batch normalization.


@functools.partial(jax.jit, static_argnums=2)
def normalize(x, variables, ghost_batch, cotangent):
  """In training value, new running moments, gradients of (scale, bias) and x; value in the test."""
  module = BatchNormalization(0.9, 1e-5, None, ghost_batch)

  def run(params, x):
    y, state = module.apply({**variables, 'params': params}, x, True, mutable=['batch_stats'])
    return y, state['batch_stats']

  y, pull, stats = jax.vjp(run, variables['params'], x, has_aux=True)
  return y, stats, *pull(cotangent), module.apply(variables, x, False)


@pytest.mark.parametrize(
  'shape, ghost_batch', [((6, 5, 4, 3), 0), ((6, 5, 4, 3), 2), ((8, 7), 0), ((8, 7), 4)]
)
def test_batch_norm_agrees_with_torch(shape, ghost_batch):
  rng = np.random.default_rng(0)
  channels = shape[-1]
  x = rng.normal(3, 2, shape).astype(np.float32)
  g = rng.normal(size=shape).astype(np.float32)
  scale, bias, mean = rng.normal(1, 0.3, (3, channels)).astype(np.float32)
  var = rng.uniform(0.5, 2, channels).astype(np.float32)
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}
  y, stats, gradients, dx, tested = normalize(x, variables, ghost_batch, g)

  expected = {'y': [], 'dx': [], 'mean': [], 'var': [], 'scale': 0, 'bias': 0}
  for chunk in np.split(np.arange(shape[0]), shape[0] // ghost_batch if ghost_batch else 1):
    peer = torch.nn.BatchNorm1d(channels, eps=1e-5, momentum=0.1, dtype=torch.float64)
    peer.load_state_dict(
      {
        'weight': torch.tensor(scale),
        'bias': torch.tensor(bias),
        'running_mean': torch.tensor(mean),
        'running_var': torch.tensor(var),
        'num_batches_tracked': torch.tensor(0),
      }
    )
    tx = torch.tensor(x[chunk].reshape(-1, channels), dtype=torch.float64, requires_grad=True)
    ty = peer(tx)
    ty.backward(torch.tensor(g[chunk].reshape(-1, channels), dtype=torch.float64))
    expected['y'].append(ty.detach().numpy())
    expected['dx'].append(tx.grad.numpy())
    expected['scale'] += peer.weight.grad.numpy()
    expected['bias'] += peer.bias.grad.numpy()
    expected['mean'].append(peer.running_mean.numpy())
    # torch keeps the unbiased variance, the paper and this project the biased one.
    n = len(tx)
    expected['var'].append(0.9 * var + (peer.running_var.numpy() - 0.9 * var) * (n - 1) / n)
  np.testing.assert_allclose(y, np.concatenate(expected['y']).reshape(shape), atol=1e-5)
  np.testing.assert_allclose(dx, np.concatenate(expected['dx']).reshape(shape), atol=1e-5)
  np.testing.assert_allclose(gradients['scale'], expected['scale'], atol=1e-4)
  np.testing.assert_allclose(gradients['bias'], expected['bias'], atol=1e-4)
  np.testing.assert_allclose(stats['mean'], np.mean(expected['mean'], 0), atol=1e-6)
  np.testing.assert_allclose(stats['var'], np.mean(expected['var'], 0), atol=1e-5)

  with torch.no_grad():
    expected_in_test = F.batch_norm(
      *map(torch.tensor, (x.reshape(-1, channels), mean, var, scale, bias))
    )
  np.testing.assert_allclose(tested, expected_in_test.reshape(shape), atol=1e-5)


def test_batch_norm_that_is_not_affine_is_one_with_scale_1_and_bias_0():
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (6, 5, 4, 3)), jnp.float32)
  plain, affine = (BatchNormalization(0.9, 1e-4, None, 0, affine) for affine in (False, True))
  variables = affine.init(jax.random.key(0), x, True)
  stats = {'batch_stats': variables['batch_stats']}
  assert set(plain.init(jax.random.key(0), x, True)) == {'batch_stats'}
  np.testing.assert_array_equal(stats['batch_stats']['mean'], 0)
  np.testing.assert_array_equal(stats['batch_stats']['var'], 1)
  for train in (True, False):
    ours, _ = plain.apply(stats, x, train, mutable=['batch_stats'])
    peer, _ = affine.apply(variables, x, train, mutable=['batch_stats'])
    np.testing.assert_array_equal(ours, peer)


# bfloat16.


def test_bfloat16_is_close_and_keeps_float32_where_it_matters():
  table = (
    layers.Conv('conv1', 16, 5, stride=2),
    layers.ResponseNorm('norm1', groups=2),
    layers.MaxPool('pool1'),
    layers.Relu('relu1'),
    layers.Conv('conv2', 16, 3, groups=2, init='he'),
    layers.BatchNorm('bn2'),
    layers.Relu('relu2'),
    layers.SpatialNorm('spatial_norm2'),
    layers.AvgPool('pool2'),
    layers.Local('local3', 8, 3, padding=1, init='he'),
    layers.Tanh('tanh3'),
    layers.Dense('fc4', 64, init=0.1, bias=1.0),
    layers.Relu('relu4'),
    layers.Dropout('drop4'),
    layers.Dense('fc5', 10, init=0.1),
  )
  images, labels = images_and_labels(8, (30, 30, 3), 10)
  keys = jax.random.split(jax.random.key(0), 8)
  variables = jax.jit(AlexNet(table).init)(jax.random.key(0), images[:1])
  stats = {'batch_stats': variables['batch_stats']}

  def run(dtype):
    def loss(params):
      logits, state = AlexNet(table, dtype).apply(
        {'params': params, **stats}, images, train=True, keys=keys, mutable=True
      )
      return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), labels]), (logits, state)

    (_, (logits, state)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      variables['params']
    )
    return logits, state, gradients

  logits, state, gradients = run(jnp.float32)
  half_logits, half_state, half_gradients = run(jnp.bfloat16)
  outputs = {name: x.dtype for name, x in half_state['intermediates']['outputs'].items()}
  assert outputs.pop('fc5') == jnp.float32  # the logits are not even rounded on the way
  assert set(outputs.values()) == {jnp.dtype('bfloat16')}
  for tree in (half_logits, half_gradients, half_state['batch_stats']):
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(tree))
  assert_close(half_logits, logits, 0.03)
  jax.tree.map(
    lambda a, b: assert_close(a, b, 0.01), half_state['batch_stats'], state['batch_stats']
  )
  for layer in gradients:  # maxima and signs that rounding moves turn it a little
    a, b = (
      np.asarray(g[layer]['kernel' if 'kernel' in g[layer] else 'scale']).ravel()
      for g in (half_gradients, gradients)
    )
    assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b), layer
