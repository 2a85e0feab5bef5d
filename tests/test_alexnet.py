"""Whole nets against torch programs written from the papers and prototxts, with the same weights.

Every reference takes weights in the layout of `params`, {layer: {'kernel', 'bias'}}, images
(N, C, H, W), and a function that drops units where the net does.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.closeness import assert_close

from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet, as_subclass, dropout
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


def caffe(w, x, drop):
  def norm(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

  x = pool(norm(conv(x, w['conv1'], stride=4).relu()))
  x = pool(norm(conv(x, w['conv2'], padding=2, groups=2).relu()))
  x = conv(x, w['conv3'], padding=1).relu()
  x = conv(x, w['conv4'], padding=1, groups=2).relu()
  x = pool(conv(x, w['conv5'], padding=1, groups=2).relu())
  x = drop('drop6', dense(x, w['fc6']).relu())
  x = drop('drop7', (x @ w['fc7']['kernel'] + w['fc7']['bias']).relu())
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
    fan_in = math.prod(sizes['kernel'][-4:-1])
    std = np.float32(math.sqrt(2 / fan_in) / (100 if row is table[-1] else 1))
    weights[row.name] = {
      'kernel': std * rng.standard_normal(sizes['kernel'], np.float32),
      'bias': rng.normal(0, 5 if row is not table[-1] else 0.1, sizes['bias']).astype(np.float32),
    }
  return weights


def images_and_labels(count, shape, classes):
  rng = np.random.default_rng(7)
  return rng.normal(0, 60, (count, *shape)).astype(np.float32), rng.integers(0, classes, count)


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
    (cifar_18pct, 32, 1, True),
    (cifar_11pct, 24, 2, True),
  ],
)
def test_logits_and_gradients(net, side, divisor, train):
  table = nets.NETS[net.__name__](10)
  table = layers.narrow(table, divisor) if divisor > 1 else table
  shape = (side, side, 3)
  weights = random_weights(table, shape)
  images, labels = images_and_labels(2, shape, 10)
  keys = jax.random.split(jax.random.key(3), 2) if train else None
  logits, gradients = ours(table, weights, images, labels, keys)
  expected, expected_gradients = theirs(net, weights, images, labels, masks_of(table, keys))
  assert_close(logits, expected)
  assert_close(gradients, expected_gradients, 3e-5)
  assert all(gradient.any() for gradient in jax.tree.leaves(expected_gradients))


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
  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
  kernels = [rng.normal(size=shape).astype(np.float32) for shape in ((12, 16), (16, 3))]

  def train(inverted):
    model = AlexNet(
      (
        layers.Dense('fc1', 16),
        layers.Relu('relu'),
        layers.Dropout('drop', inverted=inverted),
        layers.Dense('fc2', 3),
      )
    )

    def tree(fc1, fc2, biases):
      names = {'fc1': fc1, 'fc2': fc2}
      return {name: {'kernel': x, 'bias': jnp.float32(biases)} for name, x in names.items()}

    def loss(params, keys):
      logits = model.apply({'params': params}, images, train=True, keys=keys)
      return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    half = np.float32(0.5 if inverted else 1)  # of fc2's kernel, the layer above the dropout
    optimizer = krizhevsky_momentum(0.9, tree(0.01, 0.01 / half**2, 0.01))
    rates = tree(0.1, 0.1 * half**2, 0.1)
    params = tree(kernels[0], half * kernels[1], 1)
    params = {
      name: {**layer, 'bias': jnp.ones(layer['kernel'].shape[1])} for name, layer in params.items()
    }
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, keys):
      updates, state = optimizer.update(jax.grad(loss)(params, keys), state, params, rates=rates)
      return jax.tree.map(jnp.add, params, updates), state

    for number in range(5):
      params, state = step(params, state, jax.random.split(jax.random.key(number), 4))
    params['fc2']['kernel'] /= half
    return params

  trained, other = train(inverted=True), train(inverted=False)
  jax.tree.map(np.testing.assert_array_equal, trained, other)
  assert np.abs(other['fc2']['kernel'] - kernels[1]).max() > 0.01  # it has moved


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
    weight, shift = (
      torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (scale, bias)
    )
    running = [torch.tensor(moment, dtype=torch.float64) for moment in (mean, var)]
    tx = torch.tensor(x[chunk].reshape(-1, channels), dtype=torch.float64, requires_grad=True)
    ty = F.batch_norm(tx, *running, weight, shift, training=True, momentum=0.1, eps=1e-5)
    ty.backward(torch.tensor(g[chunk].reshape(-1, channels), dtype=torch.float64))
    expected['y'].append(ty.detach().numpy())
    expected['dx'].append(tx.grad.numpy())
    expected['scale'] += weight.grad.numpy()
    expected['bias'] += shift.grad.numpy()
    expected['mean'].append(running[0].numpy())
    # torch keeps the unbiased variance, the paper and this project the biased one.
    n = len(tx)
    expected['var'].append(0.9 * var + (running[1].numpy() - 0.9 * var) * (n - 1) / n)
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


def test_a_subclass_keeps_every_attribute():
  class Wider(AlexNet):
    more: int = 0

  net = AlexNet(nets.digits(), jnp.bfloat16, 'batch', 4, True)
  other = as_subclass(net, Wider, more=1)
  names = [field.name for field in dataclasses.fields(AlexNet)]
  assert [getattr(other, name) for name in names] == [getattr(net, name) for name in names]
  assert other.more == 1
  defaults = AlexNet(nets.digits())
  assert all(
    getattr(net, name) != getattr(defaults, name)
    for name in AlexNet.__annotations__
    if name not in ('table', 'parent', 'name')
  )
