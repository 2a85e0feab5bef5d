"""The weights that a run starts from, and the fields of its config that follow from them."""

from pathlib import Path

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.weights.load import load
from alexnet_jax.weights.run_folder import load_workdir


def weights_of(config: ml_collections.ConfigDict, workdir: Path | None = None) -> Pretrained | None:
  """Loads the trained net that a run starts from; None if it is initialized at random.

  A run with a checkpoint has all that it took from the weights, so it resumes without them.

  Args:
    config: the run's.
    workdir: its folder, if it may have begun.

  Raises:
    UserError: the weights cannot be read.
  """
  if not config.weights:
    return None
  if workdir and Checkpoints(RunFolder(workdir).checkpoints, primary=False).steps('last'):
    return load_workdir(workdir, 'last')
  return load(config.weights)


def fill_from_weights(config: ml_collections.ConfigDict, workdir: Path | None = None) -> None:
  """Fills in the fields that a config leaves to its weights: see `config.fields_from_weights`.

  Raises:
    UserError: there are none, or they cannot be read.
  """
  weights = weights_of(config, workdir)
  if weights is None:
    raise UserError(
      'config.weights is missing: name the trained net to start from, a file or the folder of a'
      ' run, such as --config.weights=runs/digits; or of the package, --config.weights=cifar10'
    )
  preprocessing = weights.preprocessing
  if not config.input.crop:
    config.input.crop = preprocessing.crop
    config.input.resize_to = config.input.resize_to or preprocessing.resize_to
  if not config.model.net:
    config.model.net, config.model.ablations = weights.net, weights.ablations
    if config.model.width not in (1, weights.width):
      raise UserError(
        f'config.model.width={config.model.width:g}: config.weights={config.weights} holds net'
        f' {nets.title(weights)}; leave the width out, which is then that of the weights'
      )
    config.model.width = weights.width
  config.data.image_size = config.data.image_size or weights.image_size
  config.data.resize = config.data.resize or weights.resize
  *_, last = weights.table

  def concrete(name: str) -> str:
    layer, slash, parameter = name.partition('/')
    return (last.name if layer == configs.LAST else layer) + slash + parameter

  factors = config.optimizer.layer_lr_factors
  config.optimizer.layer_lr_factors = {concrete(name): factors[name] for name in factors}
