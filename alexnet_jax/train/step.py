"""The training step, as a pure function of what one device holds.

  train_step(state, batch) -> (state, metrics)

Crops, flips, color noise and dropout are functions of (seed, step, position in the global batch).
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.data.feed import Batches
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.preprocessing import Preprocessing, example_keys
from alexnet_jax.train.schedules import Rates


class TrainState(flax.struct.PyTreeNode):
  """Everything that changes during a run, and all that a checkpoint holds.

  Attributes:
    step: int32 scalar, number of steps taken.
    params: {layer: {'kernel', 'bias', ...}}, float32.
    batch_stats: running moments of batch normalization; {} without it.
    opt_state: velocity or Adam moments.
    ema: exponential moving average of the params; {} without one.
    plateau: state of a plateau schedule, see `schedules.Plateau`; {} without one.
    nonfinite_steps: int32 scalar, consecutive steps with a loss or gradient that is not finite.
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
    """The parameters to evaluate: the moving average if there is one."""
    return self.ema or self.params


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The constants of a run that a training step needs.

  Attributes:
    seed: of dropout and augmentation.
    preprocessing: how views are made from stored images.
    color_noise: step -> standard deviation of the color noise.
    rates: learning rate schedules.
    optimizer: an optax transformation whose `update` takes `rates`, see `optimizer.py`.
    label_smoothing: share of the target spread evenly over the classes.
    ema_decay: decay of the moving average of the parameters; 0 for none.
  """

  seed: int
  preprocessing: Preprocessing
  color_noise: Callable[[jax.Array], jax.Array]
  rates: Rates
  optimizer: optax.GradientTransformationExtraArgs
  label_smoothing: float = 0.0
  ema_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Program:
  """The compiled training step of a run and the batches it takes; see `loop.make_program`.

  Attributes:
    train_step: (state, batch) -> (state, metrics) on all devices, made by `Devices.pmap`. Accepts
      a replicated state on the first call and its own output on later calls (which may be sharded).
    make_batches: (start, end, is_due) -> (steps, batches): an iterable of the cumulative step count
      at the end of each call of `train_step`, and the batches of these calls. A call has to end
      where `is_due(step)`, since the host needs the state then.
    replicated: gathers the state for evaluation and checkpoints; identity unless
      `model.shard_dense`.
  """

  train_step: Any
  make_batches: Callable[[int, int, Callable[[int], bool]], tuple[Iterable[int], Batches]]
  replicated: Callable[[TrainState], TrainState] = lambda state: state


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
    opt_state=jax.jit(recipe.optimizer.init)(variables['params']),  # one program, not one per leaf
    ema=variables['params'] if recipe.ema_decay else {},
    plateau=plateau,
    nonfinite_steps=jnp.int32(0),
  )


def make_compute_gradients(model: AlexNet, recipe: Recipe):
  """Builds the forward and backward pass of one device's batch.

  Returns:
    (state, batch) -> ((gradients, metrics), batch_stats): means over the batch, and the updated
    running moments. `batch` has image uint8 (b, S, S, 3), label int32 (b,), position int32 (b,).
    Metrics are float32 scalars: loss (nats), which the gradients are of, and top1_error. One that
    is added here is averaged, logged and written under its name.
  """

  def loss_function(params, batch_stats, images, labels, keys):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      train=True,
      keys=keys,
      mutable=['batch_stats'],
    )
    with jax.named_scope('loss'):
      one_hot = jax.nn.one_hot(labels, logits.shape[-1])
      targets = optax.smooth_labels(one_hot, recipe.label_smoothing)
      loss = optax.softmax_cross_entropy(logits, targets).mean()
      metrics = {'loss': loss, 'top1_error': jnp.mean(jnp.argmax(logits, -1) != labels)}
    return loss, (metrics, updates.get('batch_stats', {}))

  def compute_gradients(state: TrainState, batch: dict):
    with jax.named_scope('views'):  # profiles and compiled programs show it
      keys = example_keys(recipe.seed, state.step, batch['position'])
      # Two keys per example; with out_axes=1 they come as (2, b), which unpacks into two arrays.
      view_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
      noise = recipe.color_noise(state.step)
      images = recipe.preprocessing.training_views(batch['image'], view_keys, noise)
    gradients, (metrics, batch_stats) = jax.grad(loss_function, has_aux=True)(
      state.params, state.batch_stats, images, batch['label'], dropout_keys
    )
    return (gradients, metrics), batch_stats

  return compute_gradients


def make_train_step(recipe: Recipe, compute_gradients, pmean, global_norm=optax.tree.norm):
  """Builds the training step.

  Args:
    recipe: the constants of the run.
    compute_gradients: see `make_compute_gradients`.
    pmean: averages (gradients, metrics) over the devices.
    global_norm: averaged gradients -> their L2 norm.

  Returns:
    (state, batch) -> (state, metrics). Metrics are float32 scalars, equal on all devices: those of
    `compute_gradients`, and gradient_norm, learning_rate and nonfinite_steps.
  """

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    (gradients, metrics), batch_stats = compute_gradients(state, batch)
    with jax.named_scope('update'):
      metrics = metrics | {'device_norm': optax.tree.norm(gradients)}
      gradients, metrics = pmean((gradients, metrics))
      return update(state, gradients, metrics, batch_stats)

  def update(state: TrainState, gradients, metrics, batch_stats) -> tuple[TrainState, dict]:
    norm, device_norms = global_norm(gradients), metrics.pop('device_norm')
    # Gradients are finite where those of each device are.  TPU's compiler takes these norms while
    # it writes the gradients, and the other one in the update, which need not wait for it.
    tested = lax.platform_dependent(
      norm, device_norms, tpu=lambda _, norms: norms, default=lambda norm, _: norm
    )
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(tested)
    scale = state.plateau.get('scale', 1.0)
    updates, opt_state = recipe.optimizer.update(
      gradients,
      state.opt_state,
      state.params,
      rates=recipe.rates.per_parameter(state.params, state.step, scale),
      finite=finite,
    )
    params = optax.apply_updates(state.params, updates)
    new_state = state.replace(
      step=state.step + 1,
      params=params,
      ema=_moving_average(state, params, finite, recipe.ema_decay),
      batch_stats=jax.tree.map(partial(jnp.where, finite), batch_stats, state.batch_stats),
      opt_state=opt_state,
      nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
    )
    return new_state, metrics | {
      'gradient_norm': norm,
      'learning_rate': recipe.rates.kernel(state.step) * scale,
      'nonfinite_steps': new_state.nonfinite_steps.astype(jnp.float32),
    }

  return train_step


def _moving_average(state: TrainState, params: dict, finite: jax.Array, max_decay: float) -> dict:
  """The new `ema`. Its decay starts low, or the initial weights would linger for epochs."""
  if not max_decay:
    return {}
  decay = jnp.minimum(max_decay, (1 + state.step) / (10 + state.step))
  decay = jnp.where(finite, decay, 1)
  return jax.tree.map(lambda average, w: decay * average + (1 - decay) * w, state.ema, params)
