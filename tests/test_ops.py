"""The net's operations against torch, TensorFlow and float64 NumPy written from their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.closeness import assert_close
from jax.test_util import check_grads

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
@pytest.mark.usefixtures('compiled_for')
def test_conv_agrees_with_torch(case):
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

  op = partial(conv_and_bias, stride=stride, padding=padding, groups=groups)
  y, (dx, dk, db) = value_and_gradients(op, x, kernel, bias, cotangent=g.transpose(0, 2, 3, 1))
  assert_close(y, ty.detach().numpy().transpose(0, 2, 3, 1))
  assert_close(dx, tx.grad.numpy().transpose(0, 2, 3, 1))
  assert_close(dk, tk.grad.numpy().transpose(2, 3, 1, 0))
  assert_close(db, tb.grad.numpy())


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_onednn_agrees_with_xla(case):
  if not onednn.available():
    pytest.skip('this jaxlib does not call oneDNN')
  image_shape, kernel_shape, stride, padding, groups = CONVOLUTIONS[case]
  arrays = normal(*image_shape), normal(*kernel_shape, seed=1), normal(kernel_shape[-1], seed=3)
  settings = {'stride': stride, 'padding': padding, 'groups': groups}
  expected, pull = jax.vjp(partial(conv_and_bias, **settings), *arrays)
  upstream = normal(*expected.shape, seed=2)
  found = value_and_gradients(partial(onednn.conv_bias, **settings), *arrays, cotangent=upstream)
  assert_close(found, (expected, pull(upstream)))


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


# Pooling.

POOLS = [(55, 3, 2), (13, 3, 2), (32, 3, 2), (8, 3, 2), (7, 2, 2), (6, 2, 2), (9, 3, 3), (10, 3, 3)]
POOLS += [(11, 5, 2), (10, 4, 3), (6, 3, 1), (5, 1, 1), (2, 3, 2), (3, 3, 2)]


@pytest.mark.parametrize('size, window, stride', POOLS)
@pytest.mark.usefixtures('compiled_for')
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


@pytest.mark.usefixtures('compiled_for')
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


# Normalization.


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
@pytest.mark.usefixtures('compiled_for')
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
@pytest.mark.usefixtures('compiled_for')
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


@pytest.mark.slow
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
