"""The GPU kernels of norm and pool, interpreted: against float64 loops and against single rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.kernels import Norm
from alexnet_jax.model.normalization import local_response_norm
from alexnet_jax.model.pooled_response import pooled_response
from alexnet_jax.model.pooling import max_pool
from alexnet_jax.model.response_kernel import response
from alexnet_jax.train.parallel import Devices


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def value_and_gradient(op, x, cotangent):
  y, pull = jax.vjp(op, x)
  return y, pull(cotangent.astype(y.dtype))[0]


# The kernels.


def response_reference(x, norm):
  """The norm's value and its gradient's function, in float64, one map after the other."""
  x = x.astype(np.float64)
  a = np.maximum(x, 0) if norm.relu_before else x
  tower = x.shape[3] // norm.groups
  maps = []  # the neighbours of each map
  for c in range(x.shape[3]):
    first, low = c // tower * tower, c - norm.size // 2
    maps.append(slice(max(low, first), min(low + norm.size, first + tower)))
  d = np.stack([norm.k + norm.alpha * (a[..., near] ** 2).sum(-1) for near in maps], -1)

  def gradient(db):
    da = db * d**-norm.beta
    for c, near in enumerate(maps):
      common = db[..., c] * a[..., c] * d[..., c] ** (-norm.beta - 1)
      da[..., near] -= 2 * norm.alpha * norm.beta * common[..., None] * a[..., near]
    return da * (x > 0) if norm.relu_before else da

  return a * d**-norm.beta, gradient


def pool_reference(b, relu_after):
  """As above: a window after the other, each starting at an even pixel that is not the last."""
  y = np.empty((len(b), b.shape[1] // 2, b.shape[2] // 2, b.shape[3]))
  winners = {}
  for n, i, j, c in np.ndindex(y.shape):
    window = b[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
    row, column = np.unravel_index(window.argmax(), window.shape)
    y[n, i, j, c] = max(window.max(), 0) if relu_after else window.max()
    if window.max() > 0 or not relu_after:
      winners[n, i, j, c] = n, 2 * i + row, 2 * j + column, c

  def gradient(dy):
    db = np.zeros_like(b)
    for place, winner in winners.items():
      db[winner] += dy[place]
    return db

  return y, gradient


PLAIN = Norm(size=5, alpha=0.3, beta=0.75, k=2.0, groups=1, relu_before=False)
RELU = PLAIN._replace(relu_before=True)
CASES = {  # shape, norm, whether a ReLU follows the pool
  'ReLU before': ((2, 7, 7, 6), RELU, False),
  'ReLU after, two towers': ((2, 13, 13, 12), PLAIN._replace(groups=2), True),
  'both ReLUs, edges that overhang, rows longer than a tile': (
    (1, 8, 6, 96),
    RELU._replace(groups=2, size=3),
    True,
  ),
  'even window, wider than its tower, other power': (
    (1, 6, 9, 9),
    PLAIN._replace(size=4, groups=3, beta=0.6, k=1.0),
    False,
  ),
  'windows of two pixels': ((1, 2, 2, 8), RELU._replace(size=2), False),
}


@pytest.mark.parametrize('case', CASES)
def test_pooled_response_follows_the_formula(case):
  shape, norm, relu_after = CASES[case]
  x = 2 * normal(*shape)
  b, response_gradient = response_reference(x, norm)
  expected, pool_gradient = pool_reference(b, relu_after)
  cotangent = normal(*expected.shape, seed=1)
  y, dx = value_and_gradient(lambda x: pooled_response(x, norm, relu_after), x, cotangent)
  assert_close(y, expected)
  assert_close(dx, response_gradient(pool_gradient(cotangent)))


@pytest.mark.parametrize('case', ['ReLU before', 'even window, wider than its tower, other power'])
def test_response_follows_the_formula(case):
  shape, norm, _ = CASES[case]
  x, cotangent = 2 * normal(*shape), normal(*shape, seed=1)
  expected, gradient = response_reference(x, norm)
  y, dx = value_and_gradient(lambda x: response(x, norm), x, cotangent)
  assert_close(y, expected)
  assert_close(dx, gradient(cotangent))


def test_bfloat16_equals_the_single_operations():
  x, cotangent = jnp.asarray(2 * normal(2, 7, 7, 12), jnp.bfloat16), normal(2, 3, 3, 12, seed=1)
  norm = PLAIN._replace(groups=2, size=3)

  def one_after_the_other(x):
    return jax.nn.relu(max_pool(local_response_norm(x, alpha=0.3, groups=2, size=3)))

  found = value_and_gradient(lambda x: pooled_response(x, norm, True), x, cotangent)
  expected = value_and_gradient(one_after_the_other, x, cotangent)
  for actual, wanted in zip(found, expected, strict=True):
    assert actual.dtype == jnp.bfloat16
    assert_close(actual, wanted.astype(np.float32), 1e-2)


def test_a_tied_window_is_routed_to_its_first_pixel():
  norm = PLAIN._replace(k=1.0, size=1)
  dx = jax.grad(lambda x: pooled_response(x, norm).sum())(jnp.zeros((1, 4, 4, 1)))
  expected = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(dx[0, :, :, 0], expected)


@pytest.mark.parametrize('norm, relu_after', [(RELU, False), (PLAIN, True)])
def test_nan_is_let_through(norm, relu_after):
  x = jnp.ones((1, 7, 7, 8)).at[0, 3, 3, 0].set(jnp.nan)
  y = np.isnan(pooled_response(x, norm, relu_after))[0]
  expected = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
  np.testing.assert_array_equal(y[:, :, 2], expected)  # two maps on, within the window
  assert not y[:, :, 3].any()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('op, side', [(response, 55), (pooled_response, 27)])
def test_a_gpu_gets_one_kernel_each_way(op, side, dtype):
  x, cotangent = (jax.ShapeDtypeStruct((4, n, n, 96), dtype) for n in (55, side))
  traced = value_and_gradient.trace(lambda x: op(x, RELU._replace(groups=2)), x, cotangent)
  program = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert program.count('custom_call @__gpu$xla.gpu.triton') == 2
  assert 'stablehlo.while' not in program  # what the interpreter would be


# The net.

TABLE = (
  layers.Conv('conv1', 12, 3, init=0.4),
  layers.Relu('relu1'),
  layers.ResponseNorm('norm1', size=3, groups=2, alpha=0.1),
  layers.MaxPool('pool1'),
  layers.Conv('conv2', 8, 3, padding=1, init=0.2),
  layers.ResponseNorm('norm2', size=3, alpha=0.1),
  layers.MaxPool('pool2'),
  layers.Relu('relu2'),
  layers.Tanh('tanh2'),
  layers.Relu('relu3'),
  layers.ResponseNorm('norm3', size=2, alpha=0.1),
  layers.AvgPool('pool3'),
  layers.Dropout('drop3'),
  layers.Dense('fc4', 5, init=0.2),
)


@pytest.fixture(scope='module')
def params():
  shapes = {row.name: row.parameters(inputs) for row, inputs, _ in layers.walk(TABLE, (15, 15, 3))}
  return {
    name: {leaf: 0.3 * normal(*shape) for leaf, shape in leaves.items()}
    for name, leaves in shapes.items()
    if leaves
  }


def loss(params, fused_kernels, mutable=(), train=True):
  images, keys = normal(3, 15, 15, 3, seed=1), jax.random.split(jax.random.key(0), 3)
  model = AlexNet(TABLE, fused_kernels=fused_kernels)
  logits, found = model.apply(
    {'params': params}, images, train=train, keys=keys, mutable=list(mutable)
  )
  return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), found


def has_kernels(params, *args, **kwargs):
  return 'pallas_call' in str(jax.make_jaxpr(lambda params: loss(params, *args, **kwargs))(params))


def test_a_net_computes_the_same_with_kernels(params):
  run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (found, _), gradients = run(params, True)
  (expected, _), expected_gradients = run(params, False)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  jax.tree.map(partial(assert_close, tolerance=1e-5), gradients, expected_gradients)


def test_kernels_are_for_training_that_nobody_looks_into(params):
  assert has_kernels(params, True)
  assert not has_kernels(params, False)
  assert not has_kernels(params, True, train=False)
  assert not has_kernels(params, True, mutable=('intermediates',))
  _, found = jax.jit(partial(loss, fused_kernels=True, mutable=('intermediates',)))(params)
  assert list(found['intermediates']['outputs']) == sorted(row.name for row in TABLE)


@pytest.mark.parametrize(
  'net, expected',
  [
    ('krizhevsky2012', ['norm1 pool1 relu1', 'relu2 norm2']),  # then comes a spatial norm
    ('paper', ['relu1 norm1 pool1', 'relu2 norm2 pool2']),
    ('caffenet', []),  # pools first
    ('cifar_18pct', []),  # spatial norms
    ('cifar_11pct', ['relu2 norm2 pool2']),
  ],
)
def test_rows_that_a_kernel_computes(net, expected):
  table = nets.NETS[net](10)
  pieces = layers.pieces(table, True)
  assert [' '.join(row.name for row in rows) for _, rows in pieces if len(rows) > 1] == expected
  assert [row for _, rows in pieces for row in rows] == list(table)
  assert all(table[index] is rows[0] for index, rows in pieces)
  assert layers.pieces(table, False) == [(i, (row,)) for i, row in enumerate(table)]


@pytest.mark.parametrize(
  'pool', [layers.AvgPool('pool'), layers.MaxPool('pool', 2), layers.MaxPool('pool', 3, 3)]
)
def test_other_pools_are_not_for_the_kernel(pool):
  table = (layers.Relu('relu1'), layers.ResponseNorm('norm'), pool, layers.Relu('relu2'))
  assert [len(rows) for _, rows in layers.pieces(table, True)] == [2, 1, 1]


# The choice.


def config_of(net):
  config = configs.default()
  config.model.net, config.model.fused_kernels = net, True
  return config


def test_elsewhere_than_on_a_gpu_the_choice_is_refused():
  configs.validate(config_of('paper'))
  with pytest.raises(
    UserError, match=r'model\.fused_kernels=True: .* GPUs, .* a cpu: use --config'
  ):
    Devices().check_kernels(config_of('paper'))
  Devices().check_kernels(configs.default())


def test_a_net_without_such_rows_refuses_the_choice():
  with pytest.raises(UserError, match=r'model\.fused_kernels=True: net owt has no response norm'):
    configs.validate(config_of('owt'))


def test_the_choice_alters_a_run():
  assert configs.alters_run('model.fused_kernels', False, True, config_of('paper'))
