"""Builds the net, preprocessing, rates and optimizer of a run from its config and its data."""

import dataclasses

import jax.numpy as jnp
import ml_collections
import numpy as np

from alexnet_jax.data.store import Store
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets, onednn, preprocessing
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.train import schedules
from alexnet_jax.train.devices import AXIS
from alexnet_jax.train.optimizer import make_optimizer
from alexnet_jax.train.schedules import Calendar
from alexnet_jax.train.step import Recipe, TrainState, init_state, init_variables


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run that is ready to start.

  Attributes:
    config: validated.
    classes: identifiers of the classes, in the order of the logits.
    table: layers of the net.
    model: the net.
    recipe: constants of the training step.
    calendar: converts steps to epochs and back.
    plateau: the schedule of kind plateau; None for other kinds.
    weights: the trained net to start from; None for random weights.
    new_layer: with `weights`, the layer that starts at random nevertheless; None if there is none.
  """

  config: ml_collections.ConfigDict
  classes: tuple[str, ...]
  table: layers.Table
  model: AlexNet
  recipe: Recipe
  calendar: Calendar
  plateau: schedules.Plateau | None
  weights: Pretrained | None = None
  new_layer: str | None = None

  @property
  def view_shape(self) -> tuple[int, int, int]:
    return (self.config.input.crop, self.config.input.crop, 3)

  def initial_state(self) -> TrainState:
    """The state before the first step, a function of config.seed and the weights."""
    variables = init_variables(self.model, self.config.seed, self.config.input.crop)
    if self.weights is not None:
      trained = self.weights.variables
      variables = {
        collection: {
          layer: leaves if layer == self.new_layer else trained[collection][layer]
          for layer, leaves in by_layer.items()
        }
        for collection, by_layer in variables.items()
      }
    plateau = self.plateau.initial() if self.plateau else {}
    return init_state(variables, self.recipe, plateau)


def make_experiment(
  config: ml_collections.ConfigDict,
  store: Store,
  platform: str,
  weights: Pretrained | None = None,
) -> Experiment:
  """Builds a run from its config and its prepared data.

  Args:
    config: validated.
    store: the data.
    platform: `Devices.platform`, which decides how convolutions are computed.
    weights: the trained net to start from; None for random weights.

  Raises:
    UserError: the data has fewer than two classes, or the weights are of another net.
  """
  if len(store.classes) < 2:
    found = ', '.join(store.classes) or 'none'
    raise UserError(f'the data needs images of at least 2 classes and has: {found}; check data.dir')
  if config.weights and weights is None:
    raise ValueError(f'config.weights={config.weights}: pass weights=weights_of(config)')
  calendar = Calendar(len(store.train.labels), config.batch_size, config.epochs)
  table = nets.table_of(config, len(store.classes))
  model = AlexNet(
    table,
    jnp.dtype(config.model.compute_dtype),
    AXIS,
    config.model.ghost_batch,
    onednn.used(config.model, platform),
  )
  shapes = {
    row.name: row.parameters(inputs)
    for row, inputs, _ in layers.walk(table, (config.input.crop, config.input.crop, 3))
    if row.parameters(inputs)
  }
  new_layer = None
  if weights is not None:
    _check_fit(weights, config, shapes, new_layer=table[-1].name)
    same = weights.classes in (store.classes, store.class_names)
    new_layer = None if same else table[-1].name
  schedule = config.optimizer.schedule
  plateau = None
  if schedule.kind == 'plateau':
    plateau = schedules.Plateau(schedule.factor, schedule.patience)
  recipe = Recipe(
    seed=config.seed,
    preprocessing=make_preprocessing(config, store, weights),
    color_noise=make_color_noise(config.input, calendar),
    rates=schedules.make_rates(config, calendar),
    optimizer=make_optimizer(config.optimizer, shapes),
    label_smoothing=config.label_smoothing,
    ema_decay=config.ema_decay,
  )
  return Experiment(
    config, store.classes, table, model, recipe, calendar, plateau, weights, new_layer
  )


def _check_fit(weights: Pretrained, config, shapes: dict, new_layer: str) -> None:
  """Raises UserError unless the weights have these shapes, but for those of `new_layer`."""
  if nets.title(weights) != nets.title(config.model):
    raise UserError(
      f'config.weights={config.weights} holds net {nets.title(weights)}, which does not'
      f' fit config.model.net={nets.title(config.model)}: use --config.model.net={weights.net} with'
      ' the same width and ablations, or other weights'
    )
  for layer, parameters in shapes.items():
    for name, shape in parameters.items():
      found = weights.variables['params'][layer][name].shape
      if layer != new_layer and found != tuple(shape):
        raise UserError(
          f'config.weights={config.weights} has {layer}/{name} of shape {found}, this run'
          f' {tuple(shape)}: use the crop they were trained with,'
          f' --config.input.crop={weights.preprocessing.crop}'
        )


def make_color_noise(settings, calendar: Calendar):
  """step -> standard deviation of the color noise, which ends at input.color_noise_epochs."""
  if settings.color_noise and settings.color_noise_epochs:
    end = calendar.step_of(settings.color_noise_epochs)
    return lambda step: jnp.where(step < end, settings.color_noise, 0.0)
  return lambda step: jnp.float32(settings.color_noise)


def make_preprocessing(
  config, store: Store, weights: Pretrained | None = None
) -> preprocessing.Preprocessing:
  """Builds the preprocessing that config.input describes, with statistics of store or weights.

  Raises:
    UserError: the mean image of the weights is smaller than a view.
  """
  settings = config.input
  mean, scale = np.zeros(3), np.ones(3)
  match settings.normalization:
    case 'mean_image':
      # The central crop of the mean image, which is first resized like the images.
      enlarged = preprocessing.enlarge(jnp.asarray(store.mean_image)[None], settings.resize_to)
      mean = preprocessing.central(np.asarray(enlarged[0]), settings.crop)
    case 'mean_pixel' | 'standardize':
      mean = store.mean_image.mean((0, 1), dtype=np.float64)
    case 'mean_scalar':  # one number, of all pixels and channels
      mean = np.full(3, store.mean_image.mean(dtype=np.float64))
    case 'torchvision':
      mean = np.array(preprocessing.TORCHVISION_MEAN)
      scale = 1 / np.array(preprocessing.TORCHVISION_STD)
    case 'weights':
      assert weights is not None  # as config.validate requires
      mean, scale = weights.preprocessing.mean, weights.preprocessing.scale
      if mean.ndim == 3 and settings.crop > len(mean):
        raise UserError(
          f'config.input.crop={settings.crop}: the mean image of the weights has {len(mean)} pixels'
          ' on a side; use at most that'
        )
      if mean.ndim == 3:
        mean = preprocessing.central(mean, settings.crop)
  if settings.normalization == 'standardize':
    covariance = store.color_eigenvectors * store.color_stdevs**2 @ store.color_eigenvectors.T
    scale = 1 / np.sqrt(np.maximum(np.diag(covariance), 1e-6))
  if settings.color_statistics == '2012':
    stdevs = np.array(preprocessing.COLOR_STDEVS_2012)
    eigenvectors = np.array(preprocessing.COLOR_EIGENVECTORS_2012)
  else:
    stdevs, eigenvectors = store.color_stdevs, store.color_eigenvectors
  return preprocessing.Preprocessing(
    crop=settings.crop,
    mean=np.asarray(mean, np.float32),
    scale=np.asarray(scale * settings.scale, np.float32),
    color_basis=np.asarray((eigenvectors * stdevs).T, np.float32),
    resize_to=settings.resize_to,
    random_crop=settings.random_crop,
    random_flip=settings.random_flip,
    upright=store.upright,
  )
