"""One training step and one evaluation step: pure functions that know an axis name, no devices.

train_step: (state, batch) -> (state, metrics)       everything random from (seed, step, position)
view_probabilities: (state, batch, view) -> probabilities
score: (probabilities, batch) -> sums over the valid images of all devices
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.preprocessing import Preprocessing, example_keys
from alexnet_jax.train import optimizer
from alexnet_jax.train.schedules import Rates


class TrainState(flax.struct.PyTreeNode):
  """All that a run consists of; nothing random and no data position.

  Attributes:
    step: int32 scalar, updates made so far.
    params: {layer: {'kernel', 'bias', ...}}, float32.
    batch_stats: running moments of batch normalization, {} without it.
    opt_state: velocity or Adam moments.
    ema: moving average of the params, {} if none is kept.
    plateau: scalars of a plateau schedule, {} without one.
    nonfinite_steps: int32 scalar, non-finite steps in a row that were not applied.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: optax.OptState
  ema: dict
  plateau: dict
  nonfinite_steps: jax.Array

  @property
  def eval_params(self) -> dict:
    """The parameters to evaluate: the moving average where one is kept."""
    return self.ema or self.params


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a train step needs besides state and data; all of it fixed for a run.

  Attributes:
    seed: of dropout and augmentation.
    preprocessing: how views are made.
    color_noise: step -> its standard deviation.
    rates: learning rates.
    optimizer: an optax transformation whose update takes `rates`.
    label_smoothing: share of the target spread evenly over the classes.
    ema_decay: of the moving average of the parameters; 0 keeps none.
    grad_accum_steps: parts of a device's batch that are processed one after the other.
  """

  seed: int
  preprocessing: Preprocessing
  color_noise: Callable[[jax.Array], jax.Array]
  rates: Rates
  optimizer: optax.GradientTransformationExtraArgs
  label_smoothing: float = 0.0
  ema_decay: float = 0.0
  grad_accum_steps: int = 1


def init_variables(model: AlexNet, seed: int, crop: int) -> dict:
  """Initial {'params': ..., 'batch_stats': ...} of a net for (crop, crop, 3) views."""
  image = jnp.zeros((1, crop, crop, 3), jnp.float32)
  variables = jax.jit(model.init)({'params': jax.random.key(seed)}, image)
  return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def init_state(variables: dict, recipe: Recipe, plateau: dict) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.int32(0),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=jax.jit(recipe.optimizer.init)(variables['params']),  # not a program for each leaf
    ema=variables['params'] if recipe.ema_decay else {},
    plateau=plateau,
    nonfinite_steps=jnp.int32(0),
  )


def make_train_step(model: AlexNet, recipe: Recipe, axis_name: str | None, shards: int = 1):
  """Builds the step.

  Args:
    model: the net; its axis_name must be the same.
    recipe: see `Recipe`.
    axis_name: pmapped axis over which gradients and metrics are averaged; None on one device.
    shards: devices over which the dense layers are spread, all of the axis; 1: every device has
      them whole.  With more, a device's state has its columns only (`layers.shard_dense`).

  Returns:
    (state, batch) -> (state, metrics).  `batch` has image uint8 (b, S, S, 3), label int32 (b,),
    position int32 (b,).  metrics are float32 scalars, equal on all devices: loss, top1_error,
    gradient_norm, learning_rate, nonfinite_steps (non-finite steps in a row up to this one).
  """

  sharded = layers.sharded(model.table, shards)
  model = model.clone(table=layers.shard_dense(model.table, shards))

  def mean(gradients, *others):
    """Averages over the devices; gradients of shards arrive as sums over all of them."""
    if not axis_name:
      return gradients, *others
    own = {name: jax.tree.map(lambda g: g / shards, gradients[name]) for name in sharded}
    rest = {name: leaves for name, leaves in gradients.items() if name not in own}
    rest, *others = lax.pmean((rest, *others), axis_name)
    return rest | own, *others

  def squares(tree):
    """As optimizer.squares, of whole layers."""
    sums = optimizer.squares(tree)
    own = {name: sums[name] for name in sharded}
    return sums | lax.psum(own, axis_name) if own else sums

  def loss_function(params, batch_stats, images, labels, keys):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      train=True,
      keys=keys,
      mutable=['batch_stats'],
    )
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    error = jnp.mean(jnp.argmax(logits, -1) != labels)
    return loss, (updates.get('batch_stats', {}), error)

  def gradients_of(state, batch, noise):
    """Gradients, loss and error averaged over this device's images."""
    keys = example_keys(recipe.seed, state.step, batch['position'])
    view_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    images = recipe.preprocessing.training_views(batch['image'], view_keys, noise)
    (loss, (batch_stats, error)), gradients = jax.value_and_grad(loss_function, has_aux=True)(
      state.params, state.batch_stats, images, batch['label'], dropout_keys
    )
    return gradients, loss, error, batch_stats

  def accumulated(state, batch, noise):
    """As gradients_of, a micro-batch at a time, so that activations take less memory."""
    parts = jax.tree.map(lambda x: x.reshape(recipe.grad_accum_steps, -1, *x.shape[1:]), batch)

    def add(sums, part):
      return jax.tree.map(jnp.add, sums, gradients_of(state, part, noise)), None

    zeros = jax.tree.map(
      jnp.zeros_like, (state.params, jnp.float32(0), jnp.float32(0), state.batch_stats)
    )
    # XLA:CPU's convolutions take 40 times as long in a loop (github.com/jax-ml/jax/issues/12868);
    # without one it keeps the activations of all parts.
    sums = lax.platform_dependent(
      parts,
      cpu=lambda parts: lax.scan(add, zeros, parts, unroll=True)[0],
      default=lambda parts: lax.scan(add, zeros, parts)[0],
    )
    return jax.tree.map(lambda x: x / recipe.grad_accum_steps, sums)

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    compute = gradients_of if recipe.grad_accum_steps == 1 else accumulated
    *averaged, batch_stats = compute(state, batch, recipe.color_noise(state.step))
    gradients, loss, error = mean(*averaged)
    norm = jnp.sqrt(optax.tree.sum(squares(gradients)))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rates = recipe.rates.per_parameter(state.params, state.step, state.plateau.get('scale', 1.0))
    updates, opt_state = recipe.optimizer.update(
      gradients, state.opt_state, state.params, rates=rates, finite=finite, squares=squares
    )

    params = optax.apply_updates(state.params, updates)
    # Early on the average forgets faster, or the initial weights would linger in it for epochs.
    decay = jnp.minimum(recipe.ema_decay, (1 + state.step) / (10 + state.step))
    decay = jnp.where(finite, decay, 1)
    averaged_params = params if recipe.ema_decay else {}
    ema = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.ema, averaged_params)
    new_state = state.replace(
      step=state.step + 1,
      params=params,
      ema=ema,
      batch_stats=jax.tree.map(partial(jnp.where, finite), batch_stats, state.batch_stats),
      opt_state=opt_state,
      nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
    )
    metrics = {
      'loss': loss,
      'top1_error': error,
      'gradient_norm': norm,
      'learning_rate': recipe.rates.kernel_rate(state.step) * state.plateau.get('scale', 1.0),
      'nonfinite_steps': new_state.nonfinite_steps.astype(jnp.float32),
    }
    return new_state, metrics

  return train_step


def make_view_probabilities(model: AlexNet, preprocessing: Preprocessing):
  """(params, batch_stats, images, view) -> softmax probabilities float32 (b, classes)."""

  def view_probabilities(params, batch_stats, images, view):
    views = preprocessing.test_view(images, view)
    return jax.nn.softmax(model.apply({'params': params, 'batch_stats': batch_stats}, views))

  return view_probabilities


def make_score(axis_name: str | None):
  """(probabilities, label, mask) -> sums over all devices: loss, top1_error, top5_error, count.

  A label counts as found among the top k when fewer than k other classes are at least as probable.
  So ties, and probabilities that are not numbers, count against the net.
  """

  def score(probabilities, label, mask):
    own = jnp.take_along_axis(probabilities, label[:, None], axis=1)
    others = jnp.arange(probabilities.shape[1]) != label[:, None]
    above = jnp.sum(~(probabilities < own) & others, axis=1)
    tiny = jnp.finfo(jnp.float32).tiny
    sums = {
      'loss': -jnp.log(jnp.maximum(own[:, 0], tiny)),
      'top1_error': (above >= 1).astype(jnp.float32),
      'top5_error': (above >= 5).astype(jnp.float32),
      'count': jnp.ones_like(mask),
    }
    sums = {name: jnp.sum(jnp.where(mask > 0, value, 0)) for name, value in sums.items()}
    return lax.psum(sums, axis_name) if axis_name else sums

  return score
