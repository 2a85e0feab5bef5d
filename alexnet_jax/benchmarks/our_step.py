"""Our contestant of the step benchmark: the training step of `train.loop`, on generated images."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.benchmarks import roofline
from alexnet_jax.benchmarks.step_task import LossAndGrads, Task, without_dropout
from alexnet_jax.benchmarks.workload import Workload
from alexnet_jax.data.store import Split, Store
from alexnet_jax.model.preprocessing import CENTER_VIEW
from alexnet_jax.runtime import cpu
from alexnet_jax.train.devices import Devices, check_training_batch, to_host
from alexnet_jax.train.experiment import Experiment, make_experiment
from alexnet_jax.train.loop import make_program
from alexnet_jax.train.optimizer import krizhevsky_momentum, weight_decay_tree
from alexnet_jax.train.schedules import Rates
from alexnet_jax.weights.initial import weights_of

# Far more examples than a benchmark sees: the schedules stay at their beginning.
_EXAMPLES = 10**7
_TRACED_STEPS = 5


class OurStep(Workload):
  """The pmapped step: uint8 images in; crop, flip, noise, mean, forward, backward, update."""

  def __init__(self, config: dict):
    """Takes a config as `config.to_json` gives it; UserError if its batch does not fit."""
    cpu.configure()
    self._config = configs.from_json(config)
    self._devices = Devices()
    check_training_batch(self._config, self._devices)
    self._experiment, self._images = generated(self._config, self._devices.platform)
    positions = np.arange(len(self._images), dtype=np.int32)
    self._labels = positions % len(self._experiment.classes)
    self._batch = self._devices.put_batch(
      {'image': self._images, 'label': self._labels, 'position': positions}
    )
    self._initial = to_host(self._experiment.initial_state())

  def task(self) -> Task:
    """What peers need for the same step."""
    experiment, optimizer = self._experiment, self._config.optimizer
    weights = self._initial.params
    preprocessing = experiment.recipe.preprocessing
    view = jnp.asarray(CENTER_VIEW[0], jnp.float32)
    rates = experiment.recipe.rates.per_parameter(weights, jnp.int32(0), jnp.float32(1))
    return Task(
      table=experiment.table,
      view_shape=experiment.view_shape,
      platform=self._devices.platform,
      compute_dtype=self._config.model.compute_dtype,
      optimizer=optimizer.name,
      momentum=optimizer.momentum,
      views=np.asarray(jax.jit(preprocessing.test_view)(self._images, view)),
      labels=self._labels,
      weights=weights,
      rates=jax.tree.map(float, rates),
      decays=weight_decay_tree(weights, optimizer),
    )

  def loss_and_grads(self, weights: dict) -> LossAndGrads:
    """Loss and gradients at `weights` by the same step, without augmentation and dropout.

    With momentum 0 and rate 1 the new velocity is minus the gradient.
    """
    experiment = self._experiment
    zeros = jax.tree.map(lambda _: 0.0, weights)
    recipe = dataclasses.replace(
      experiment.recipe,
      preprocessing=dataclasses.replace(
        experiment.recipe.preprocessing, random_crop=False, random_flip=False
      ),
      color_noise=lambda step: jnp.float32(0),
      rates=Rates(lambda step: jnp.float32(1), lambda step: jnp.float32(1)),
      optimizer=krizhevsky_momentum(0.0, zeros),
    )
    model = experiment.model.clone(table=without_dropout(experiment.table))
    state = self._initial.replace(params=weights, opt_state=recipe.optimizer.init(weights))
    plain = dataclasses.replace(experiment, model=model, recipe=recipe)
    program = make_program(plain, self._devices, None, state)
    state = self._devices.replicate(to_host(state))
    state, metrics = program.train_step(state, self._batch)
    velocity = to_host(program.replicated(state).opt_state)
    return LossAndGrads(float(metrics['loss']), jax.tree.map(np.negative, velocity))

  def run(self, batches: int) -> int:
    if self._initial is not None:  # the first time
      self._program = make_program(self._experiment, self._devices, None, self._initial)
      self._state = self._devices.replicate(self._initial)
      self._initial = None
    for _ in range(batches):
      self._state, self._metrics = self._program.train_step(self._state, self._batch)
    jax.block_until_ready((self._state, self._metrics))
    return batches * len(self._images)

  def info(self) -> dict:
    """Also the loss of the last batch."""
    return super().info() | {'loss': float(self._metrics['loss'])}

  def roofline(self) -> roofline.Roofline:
    """Costs of the step and peak rates of the devices; call it after the first batch."""
    compiled = self._program.train_step.compiled(self._state, self._batch)  # JAX has it already
    flop = roofline.training_flop(self._experiment.table, self._experiment.view_shape)
    dtype = self._config.model.compute_dtype
    return roofline.measure_roofline(compiled, self._devices, flop * len(self._images), dtype)

  def profile(self, folder: Path) -> None:
    """Writes a trace of a few steps to the folder; call it after the first batch."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's calls would be most of the trace
    with jax.profiler.trace(str(folder), profiler_options=options):
      self.run(_TRACED_STEPS)


def compile_step(config, devices: Devices) -> jax.stages.Compiled:
  """The training step of a config, compiled for devices, which need not exist here."""
  count, images = devices.global_count, config.batch_size // devices.global_count
  config = config.copy_and_resolve_references()
  config.batch_size = count  # as few images as can be; none are computed with
  experiment, (image, *_) = generated(config, devices.platform)
  state = jax.eval_shape(experiment.initial_state)
  program = make_program(experiment, devices, None, state)
  numbers = jax.ShapeDtypeStruct((count, images), np.int32)
  pixels = jax.ShapeDtypeStruct((count, images, *image.shape), np.uint8)
  batch = {'image': pixels, 'label': numbers, 'position': numbers}
  return program.train_step.compiled(state, batch)


def generated(config, platform: str) -> tuple[Experiment, np.ndarray]:
  """The experiment of a config without its data, and uint8 (batch_size, S, S, 3) noise images.

  One step a call, whatever config.steps_per_call says.
  """
  config = config.copy_and_resolve_references()
  config.steps_per_call = 1
  size, classes = config.data.image_size, config.data.num_classes or 10
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
  split = Split(images, np.zeros(_EXAMPLES, np.int32))
  store = Store(
    path=None,
    classes=tuple(map(str, range(classes))),
    train=split,
    eval=split,
    mean_image=random.uniform(100, 150, (size, size, 3)).astype(np.float32),
    color_stdevs=np.array([20.0, 37.0, 122.0]),
    color_eigenvectors=np.eye(3),
    meta={},
  )
  return make_experiment(config, store, platform, weights_of(config)), images
