"""The 2012 update, LARC and Adam as optax transformations with a rate for every parameter."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.model.fusion import no_fusion


def krizhevsky_momentum(momentum: float, weight_decay: dict) -> optax.GradientTransformation:
  """Stochastic gradient descent as in paper section 5 and CHM weights.cu, `Weights::update`.

      v <- momentum * v - weight_decay * rate * w - rate * gradient
      w <- w + v

  The rate sits inside the velocity: after a drop, old velocity decays at its old size, unlike in
  `optax.sgd`.  Where the rate is 0 the parameter is skipped entirely, as the code skips a layer
  with eps == 0: its velocity neither moves it nor decays.

  Args:
    momentum: 0.9 in the paper.
    weight_decay: factors in the shape of the parameters.

  Returns:
    A transformation whose `update` needs `params` and `rates` (scalars in the shape of params).
    All transformations here take `finite` too: where it is false nothing moves, not even the state.
  """

  def init(params):
    return jax.tree.map(jnp.zeros_like, params)

  def update(gradients, velocity, params, *, rates, finite=True, **_):
    def step(decay, v, gradient, w, moves, rate):
      return jnp.where(moves, momentum * v - rate * (gradient + decay * w), v)

    def new_velocity(v, gradient, w, moves, rate, decay):
      # If XLA:CPU computed it in the update of w as well, each would need the other's old value,
      # and all weights and velocities be copied: up to a quarter of a step of 32 images.
      return no_fusion(partial(step, decay), v, gradient, w, moves, rate)

    moves = jax.tree.map(lambda rate: (rate > 0) & finite, rates)
    velocity = jax.tree.map(new_velocity, velocity, gradients, params, moves, rates, weight_decay)
    updates = jax.tree.map(lambda v, moves: jnp.where(moves, v, 0), velocity, moves)
    return updates, velocity

  return optax.GradientTransformationExtraArgs(init, update)


def larc(
  momentum: float, weight_decay: dict, trust_coefficient: float
) -> optax.GradientTransformationExtraArgs:
  """LARC: the 2012 update, the rate of every parameter limited by a trust ratio, for large batches.

  The limit is (1 - momentum) * trust_coefficient * |w| / |gradient|; where a norm is 0, as of
  biases that start there, it is 1.  LARS (You et al., arXiv 1708.03888) multiplies the rate by the
  trust ratio; this is LARC's "clip" mode, with which its authors trained AlexNet-BN (NVIDIA/caffe
  sgd_solver.cpp): for biases and batch-norm parameters too, weight decay not part of the norm.

  Args:
    momentum, weight_decay: as of `krizhevsky_momentum`.
    trust_coefficient: eta in the paper.

  Returns:
    A transformation like `krizhevsky_momentum`'s. Its `update` also takes `squares`, the function
    of that name here or one that sums over devices, see `sharded_dense.py`.
  """
  plain = krizhevsky_momentum(momentum, weight_decay)

  def trusted(gradient_square, square, rate):
    norms = jnp.sqrt(square), jnp.sqrt(gradient_square)
    trust = (1 - momentum) * trust_coefficient * norms[0] / norms[1]
    return jnp.minimum(rate, jnp.where((norms[0] > 0) & (norms[1] > 0), trust, 1))

  def update(gradients, velocity, params, *, rates, finite=True, squares=squares):
    rates = jax.tree.map(trusted, squares(gradients), squares(params), rates)
    return plain.update(gradients, velocity, params, rates=rates, finite=finite)

  return optax.GradientTransformationExtraArgs(plain.init, update)


def adam(beta1: float, beta2: float, epsilon: float, weight_decay: dict):
  """Adam (Kingma & Ba, arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101).

  Args:
    beta1, beta2: decay of the moving averages of the gradients and of their squares.
    epsilon: added to the denominator.
    weight_decay: factors in the shape of the parameters.

  Returns:
    A transformation whose `update` takes what `krizhevsky_momentum`'s takes.
  """
  moments = optax.scale_by_adam(beta1, beta2, epsilon)

  def update(gradients, state, params, *, rates, finite=True, **_):
    directions, new_state = moments.update(gradients, state, params)
    updates = jax.tree.map(
      lambda d, w, rate, decay: jnp.where(finite, -rate * (d + decay * w), 0),
      directions,
      params,
      rates,
      weight_decay,
    )
    return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new_state, state)

  return optax.GradientTransformationExtraArgs(moments.init, update)


def squares(tree: dict) -> dict:
  """The sum of squares of every array, scalars in the shape of `tree`."""
  return jax.tree.map(lambda x: jnp.sum(jnp.square(x)), tree)


def weight_decay_tree(params: dict, optimizer) -> dict:
  """Decay factors in the shape of `params`, {layer: {parameter: factor}}, by config.optimizer.

  Biases and batch-norm scales decay with `decay_biases` only; in 2012 they did not (layer.cu).
  """
  return {
    layer: {
      name: optimizer.layer_weight_decay.get(layer, optimizer.weight_decay)
      if name == 'kernel' or optimizer.decay_biases
      else 0.0
      for name in leaves
    }
    for layer, leaves in params.items()
  }


def make_optimizer(optimizer, params: dict) -> optax.GradientTransformationExtraArgs:
  """The transformation that config.optimizer describes, for these parameters.

  Raises:
    ValueError: `optimizer.name` is in config.py but not here.
  """
  decay = weight_decay_tree(params, optimizer)
  match optimizer.name:
    case 'momentum':
      return krizhevsky_momentum(optimizer.momentum, decay)
    case 'larc':
      return larc(optimizer.momentum, decay, optimizer.trust_coefficient)
    case 'adam':
      return adam(optimizer.momentum, optimizer.beta2, optimizer.epsilon, decay)
  raise ValueError(f'no optimizer {optimizer.name!r}')
