"""The net's operations against torch, TensorFlow and float64 NumPy written from their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.closeness import assert_close
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads

from alexnet_jax.errors import UserError
from alexnet_jax.model import onednn
from alexnet_jax.model.convolution import conv, locally_connected
from alexnet_jax.model.normalization import local_response_norm, spatial_response_norm
from alexnet_jax.model.pooling import avg_pool, max_pool


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_gradients(op, *args, cotangent):
  """Returns op's value, and its gradients with respect to all arguments, in one jitted call."""

  @jax.jit
  def run(*args):
    y, pull = jax.vjp(op, *args)
    return y, pull(jnp.asarray(cotangent, y.dtype))

  return run(*args)


# Convolution.

CONVOLUTIONS = {  # (N, H, W, C), (kh, kw, C/groups, O), stride, padding, groups
  'conv1': ((2, 43, 39, 3), (11, 11, 3, 8), 4, ((0, 3), (0, 3)), 1),
  'conv1 of torchvision': ((2, 43, 39, 3), (11, 11, 3, 8), 4, ((2, 2), (2, 2)), 1),
  'conv1 leaves a remainder': ((2, 40, 41, 3), (11, 11, 3, 8), 4, ((0, 0), (0, 0)), 1),
  'conv1 of four images': ((4, 27, 27, 3), (11, 11, 3, 6), 4, ((0, 0), (0, 0)), 1),
  'conv2': ((2, 9, 9, 6), (5, 5, 3, 4), 1, ((2, 2), (2, 2)), 2),
  'conv3': ((2, 7, 7, 6), (3, 3, 6, 4), 1, ((1, 1), (1, 1)), 1),
  'conv3 of an odd number of channels': ((3, 6, 5, 7), (3, 3, 7, 5), 1, ((1, 1), (1, 1)), 1),
  'first layer of a CIFAR net': ((3, 8, 8, 3), (3, 3, 3, 8), 1, ((1, 1), (1, 1)), 1),
  'four groups': ((2, 7, 7, 8), (3, 3, 2, 12), 2, ((1, 1), (0, 1)), 4),
  'one pixel': ((2, 5, 5, 6), (1, 1, 6, 4), 1, ((0, 0), (0, 0)), 1),
  'more zeros than filter': ((2, 5, 5, 3), (2, 2, 3, 4), 1, ((2, 3), (1, 2)), 1),
  'gray images': ((2, 9, 9, 1), (5, 5, 1, 4), 2, ((1, 2), (1, 2)), 1),
}


def conv_and_bias(x, kernel, bias, **settings):
  return conv(x, kernel, **settings) + bias


@pytest.mark.parametrize('case', CONVOLUTIONS)
@pytest.mark.parametrize('convolve', [conv_and_bias, onednn.conv], ids=['by XLA', 'by oneDNN'])
def test_conv_agrees_with_torch(case, convolve):
  if convolve is onednn.conv and not onednn.available():
    pytest.skip('this jaxlib does not call oneDNN')
  torch = pytest.importorskip('torch')
  image_shape, kernel_shape, stride, padding, groups = CONVOLUTIONS[case]
  x, kernel = normal(*image_shape), normal(*kernel_shape, seed=1)
  bias = normal(kernel_shape[-1], seed=3)
  (top, bottom), (left, right) = padding
  tb = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
  tx = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
  tk = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
  padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
  ty = torch.nn.functional.conv2d(padded, tk, tb, stride=stride, groups=groups)
  g = normal(*ty.shape, seed=2)
  ty.backward(torch.tensor(g, dtype=torch.float64))

  op = partial(convolve, stride=stride, padding=padding, groups=groups)
  y, (dx, dk, db) = value_and_gradients(op, x, kernel, bias, cotangent=g.transpose(0, 2, 3, 1))
  assert_close(y, ty.detach().numpy().transpose(0, 2, 3, 1))
  assert_close(dx, tx.grad.numpy().transpose(0, 2, 3, 1))
  assert_close(dk, tk.grad.numpy().transpose(2, 3, 1, 0))
  assert_close(db, tb.grad.numpy())


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_onednn_agrees_with_xla(case):
  """Where there is no torch, such as on a Python that is newer than it."""
  if not onednn.available():
    pytest.skip('this jaxlib does not call oneDNN')
  image_shape, kernel_shape, stride, padding, groups = CONVOLUTIONS[case]
  arrays = normal(*image_shape), normal(*kernel_shape, seed=1), normal(kernel_shape[-1], seed=3)
  settings = {'stride': stride, 'padding': padding, 'groups': groups}
  y, pull = jax.vjp(partial(onednn.conv, **settings), *arrays)
  expected, pull_expected = jax.vjp(partial(conv_and_bias, **settings), *arrays)
  assert_close(y, expected)
  upstream = normal(*y.shape, seed=2)
  for found, gradient in zip(pull(upstream), pull_expected(upstream), strict=True):
    assert_close(found, gradient)


@pytest.mark.parametrize('stride, padding', [(1, 0), (1, 1), (2, 1)])
def test_locally_connected_agrees_with_a_loop_over_positions(stride, padding):
  x = normal(2, 6, 5, 3)
  height, width = (6 + 2 * padding - 3) // stride + 1, (5 + 2 * padding - 3) // stride + 1
  kernel = normal(height, width, 3, 3, 3, 4, seed=1)
  padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))).astype(np.float64)
  expected = np.empty((2, height, width, 4))
  for i in range(height):
    for j in range(width):
      seen = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
      expected[:, i, j] = np.einsum('nhwc,hwco->no', seen, kernel[i, j])

  op = partial(locally_connected, stride=stride, padding=((padding, padding),) * 2)
  assert_close(op(x, kernel), expected)
  check_grads(op, (x, kernel), order=1, modes=['rev'], eps=1e-1, atol=1e-2, rtol=1e-2)


def test_locally_connected_with_the_same_filters_everywhere_is_conv():
  x, kernel = normal(2, 8, 8, 5), normal(3, 3, 5, 4, seed=1)
  everywhere = np.broadcast_to(kernel, (8, 8, *kernel.shape))
  same = ((1, 1), (1, 1))
  np.testing.assert_allclose(
    locally_connected(x, everywhere, padding=same), conv(x, kernel, padding=same), atol=1e-5
  )


# Pooling.

POOLS = [(55, 3, 2), (13, 3, 2), (32, 3, 2), (8, 3, 2), (7, 2, 2), (6, 2, 2), (9, 3, 3), (10, 3, 3)]
POOLS += [(11, 5, 2), (10, 4, 3), (6, 3, 1), (5, 1, 1), (2, 3, 2), (3, 3, 2)]


@pytest.mark.parametrize('size, window, stride', POOLS)
def test_max_pool_agrees_with_torch_and_ties_go_to_the_first(size, window, stride):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  width = size + 1  # not square
  x = rng.integers(0, 4, size=(2, size, width, 3)).astype(np.float32)  # full of ties
  x[0, :, :, 0] = 0  # as a ReLU leaves it
  x -= 5 * (rng.random(x.shape) < 0.1)  # the padding must lose to negative values too
  tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  # torch has no window that overhangs more than its own size allows; padding says the same.
  rows, columns = (-(-(n - window) // stride) + 1 for n in (size, width))
  below, beside = ((m - 1) * stride + window - n for m, n in ((rows, size), (columns, width)))
  padded = torch.nn.functional.pad(tx, (0, beside, 0, below), value=-torch.inf)
  ty = torch.nn.functional.max_pool2d(padded, window, stride)
  if min(size, width) >= window:
    assert torch.equal(ty, torch.nn.functional.max_pool2d(tx, window, stride, ceil_mode=True))
  g = normal(*ty.shape, seed=1)
  ty.backward(torch.tensor(g))

  op = partial(max_pool, window=window, stride=stride)
  y, (dx,) = value_and_gradients(op, x, cotangent=g.transpose(0, 2, 3, 1))
  np.testing.assert_array_equal(y, ty.detach().numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(dx, tx.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_max_pool_routes_a_tied_window_to_its_first_pixel(dtype):
  x = jnp.zeros((1, 4, 4, 1), dtype)
  dx = jax.grad(lambda x: max_pool(x).sum().astype(jnp.float32))(x)
  assert dx.dtype == dtype
  expected = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(dx[0, :, :, 0].astype(np.float32), expected)


def test_max_pool_lets_nan_through():
  x = jnp.zeros((1, 7, 7, 1)).at[0, 3, 3, 0].set(jnp.nan)
  expected = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
  np.testing.assert_array_equal(jnp.isnan(max_pool(x))[0, :, :, 0], expected)


@pytest.mark.parametrize('size, window, stride', POOLS)
def test_avg_pool_divides_by_the_clipped_window(size, window, stride):
  x = normal(2, size, size + 1, 3)
  rows, columns = (-(-(n - window) // stride) + 1 for n in (size, size + 1))
  expected = np.empty((2, rows, columns, 3))
  spread = np.zeros(x.shape)
  g = normal(*expected.shape, seed=1)
  for i in range(rows):
    for j in range(columns):
      at = np.s_[:, i * stride : i * stride + window, j * stride : j * stride + window]
      expected[:, i, j] = x[at].astype(np.float64).mean((1, 2))
      spread[at] += (g[:, i, j] / np.prod(x[at].shape[1:3]))[:, None, None]
  y, (dx,) = value_and_gradients(partial(avg_pool, window=window, stride=stride), x, cotangent=g)
  assert_close(y, expected)
  assert_close(dx, spread)


@pytest.mark.parametrize('pool', [max_pool, avg_pool])
@pytest.mark.parametrize('size, window, stride', [(8, 2, 3), (1, 3, 2)])
def test_pools_refuse_windows_without_a_pixel(pool, size, window, stride):
  with pytest.raises(UserError, match=f'{window}x{window}'):
    pool(jnp.zeros((1, size, size, 1)), window, stride)


def test_shapes_of_the_2012_net():
  def features(x):
    x = max_pool(conv(x, jnp.zeros((11, 11, 3, 96)), stride=4, padding=((0, 3), (0, 3))))
    yield x
    same = ((2, 2), (2, 2))
    x = max_pool(conv(x, jnp.zeros((5, 5, 48, 256)), padding=same, groups=2))
    yield x
    yield max_pool(x)

  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: list(features(x)), image)
  assert [y.shape for y in shapes] == [(2, 27, 27, 96), (2, 13, 13, 256), (2, 6, 6, 256)]


def test_shapes_of_the_cifar_nets():
  size, sizes = 32, []
  while size > 4:
    size = jax.eval_shape(max_pool, jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)).shape[1]
    sizes.append(size)
  assert sizes == [16, 8, 4]


# Normalisation.


def reference_norm(x, size, alpha, beta, k, groups, axes):
  """Returns the formula's value and its gradient's function, in float64, one place at a time."""
  x = x.astype(np.float64)
  below = size // 2
  denominator = np.full(x.shape, k, np.float64)
  neighbors = []
  for place in np.ndindex(*(x.shape[axis] for axis in axes)):
    lows = [max(0, i - below) for i in place]
    highs = [min(x.shape[axis], i - below + size) for i, axis in zip(place, axes, strict=True)]
    if groups > 1:
      tower = x.shape[-1] // groups
      first = place[0] // tower * tower
      lows, highs = [max(lows[0], first)], [min(highs[0], first + tower)]
    index, window = [slice(None)] * x.ndim, [slice(None)] * x.ndim
    for axis, i, low, high in zip(axes, place, lows, highs, strict=True):
      index[axis], window[axis] = slice(i, i + 1), slice(low, high)
    index, window = tuple(index), tuple(window)
    denominator[index] += alpha * (x[window] ** 2).sum(axes, keepdims=True)
    neighbors.append((index, window))

  def gradient(g):
    dx = g * denominator**-beta
    for index, window in neighbors:
      common = g[index] * x[index] * denominator[index] ** (-beta - 1)
      dx[window] -= 2 * alpha * beta * common * x[window]
    return dx

  return x * denominator**-beta, gradient


NORMS = {  # shape, size, alpha, beta, k, groups
  'the towers of rnorm1': ((2, 3, 3, 96), 5, 2e-5, 0.75, 2.0, 2),
  'strong': ((2, 3, 4, 16), 5, 0.3, 0.75, 2.0, 1),
  'three towers': ((2, 3, 4, 12), 5, 0.3, 0.75, 1.0, 3),
  'towers narrower than the window': ((2, 3, 4, 6), 5, 0.3, 0.75, 1.0, 2),
  'even window': ((2, 3, 4, 9), 4, 0.3, 0.75, 1.0, 1),
  'cifar 11pct': ((2, 3, 4, 64), 9, 0.001 / 9, 0.75, 1.0, 1),
  'other power': ((2, 3, 4, 8), 3, 0.3, 0.6, 1.5, 1),
  'power one': ((2, 3, 4, 8), 3, 0.3, 1.0, 1.5, 2),
}


@pytest.mark.parametrize('case', NORMS)
def test_local_response_norm_follows_the_formula(case):
  shape, size, alpha, beta, k, groups = NORMS[case]
  x, g = normal(*shape) / np.float32(alpha) ** 0.5, normal(*shape, seed=1)
  expected, gradient = reference_norm(x, size, alpha, beta, k, groups, axes=(3,))
  op = partial(local_response_norm, size=size, alpha=alpha, beta=beta, k=k, groups=groups)
  y, (dx,) = value_and_gradients(op, x, cotangent=g)
  assert_close(y, expected)
  assert_close(dx, gradient(g))


@pytest.mark.parametrize('shape', [(2, 7, 5, 3), (2, 2, 2, 4), (1, 13, 13, 8)])
@pytest.mark.parametrize('size, beta, k', [(3, 0.75, 1.0), (5, 0.75, 1.0), (4, 0.5, 2.0)])
def test_spatial_response_norm_follows_the_formula(shape, size, beta, k):
  x, g = 3 * normal(*shape), normal(*shape, seed=1)
  expected, gradient = reference_norm(x, size, 0.05, beta, k, 1, axes=(1, 2))
  op = partial(spatial_response_norm, size=size, alpha=0.05, beta=beta, k=k)
  y, (dx,) = value_and_gradients(op, x, cotangent=g)
  assert_close(y, expected)
  assert_close(dx, gradient(g))


def test_local_response_norm_agrees_with_torch():
  torch = pytest.importorskip('torch')
  x, g = 100 * normal(2, 5, 5, 16), normal(2, 5, 5, 16, seed=1)
  tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  ty = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)(tx)
  ty.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
  op = partial(local_response_norm, size=5, alpha=1e-4 / 5, beta=0.75, k=2.0)
  y, (dx,) = value_and_gradients(op, x, cotangent=g)
  assert_close(y, ty.detach().numpy().transpose(0, 2, 3, 1))
  assert_close(dx, tx.grad.numpy().transpose(0, 2, 3, 1))


def test_local_response_norm_agrees_with_tensorflow():
  tf = pytest.importorskip('tensorflow')
  x, g = 100 * normal(2, 5, 5, 16), normal(2, 5, 5, 16, seed=1)
  with tf.GradientTape() as tape:
    tx = tf.Variable(x)
    ty = tf.nn.local_response_normalization(tx, depth_radius=2, bias=2.0, alpha=2e-5, beta=0.75)
  tdx = tape.gradient(ty, tx, output_gradients=tf.constant(g))
  op = partial(local_response_norm, size=5, alpha=2e-5, beta=0.75, k=2.0)
  y, (dx,) = value_and_gradients(op, x, cotangent=g)
  assert_close(y, ty.numpy())
  assert_close(dx, tdx.numpy())


# Everything, in every way that training calls it.


def like(x, *shape):
  return jnp.asarray(normal(*shape, seed=1), x.dtype)


OPERATIONS = {
  'conv': lambda x: conv(x, like(x, 3, 3, 4, 6), padding=((1, 1), (1, 1)), groups=2),
  'conv of colors': lambda x: conv(x[..., :3], like(x, 5, 5, 3, 6), stride=4),
  'locally_connected': lambda x: locally_connected(x, like(x, 8, 7, 3, 3, 8, 4)),
  'max_pool': max_pool,
  'avg_pool': avg_pool,
  'local_response_norm': partial(local_response_norm, alpha=0.1, groups=2),
  'spatial_response_norm': partial(spatial_response_norm, size=3, alpha=0.1),
}
every_operation = pytest.mark.parametrize('op', OPERATIONS.values(), ids=OPERATIONS)


@every_operation
def test_gradient_is_the_slope(op):
  # Distinct values, further apart than the step: no maximum changes place.
  x = np.random.default_rng(0).permutation(2 * 10 * 9 * 8).reshape(2, 10, 9, 8) / 300 - 2.4
  check_grads(op, (x.astype(np.float32),), order=1, modes=['rev'], eps=1e-3, atol=2e-2, rtol=2e-2)


@every_operation
def test_bfloat16_stays_close_and_keeps_its_type(op):
  x = jnp.asarray(normal(2, 10, 9, 8)).astype(jnp.bfloat16)
  wide = x.astype(jnp.float32)
  g = normal(*op(wide).shape, seed=3)
  y, (dx,) = value_and_gradients(op, wide, cotangent=g)
  y16, (dx16,) = value_and_gradients(op, x, cotangent=g)
  assert y16.dtype == jnp.bfloat16
  assert dx16.dtype == jnp.bfloat16
  assert_close(y16, y, 2e-2)
  assert_close(dx16, dx, 2e-2)


@every_operation
def test_shape_and_type_without_computing(op):
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.asarray(normal(2, 10, 9, 8)).astype(dtype)
    y = jax.jit(op)(x)
    known = jax.eval_shape(op, jax.ShapeDtypeStruct(x.shape, dtype))
    assert (known.shape, known.dtype) == (y.shape, y.dtype)


@every_operation
def test_vmap_is_a_loop(op):
  x = normal(3, 2, 10, 9, 8)

  def both(x):
    y, pull = jax.vjp(op, x)
    return y, pull(y)

  for mapped, looped in zip(
    jax.tree.leaves(jax.vmap(both)(x)),
    jax.tree.leaves(jax.tree.map(lambda *parts: jnp.stack(parts), *map(both, x))),
    strict=True,
  ):
    np.testing.assert_allclose(mapped, looped, atol=1e-4, rtol=1e-4)


@every_operation
def test_runs_under_pmap_and_shard_map(op):
  x = normal(2, 10, 9, 8)

  def both(x):
    y, pull = jax.vjp(op, x)
    return y, pull(y)[0]

  alone = both(x)
  mesh, rows = Mesh(np.array(jax.devices()[:1]), 'batch'), PartitionSpec('batch')
  for run in (
    lambda x: jax.tree.map(lambda a: a[0], jax.pmap(both, axis_name='batch')(x[None])),
    jax.jit(jax.shard_map(both, mesh=mesh, in_specs=rows, out_specs=rows)),
  ):
    for actual, expected in zip(run(x), alone, strict=True):
      np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)
