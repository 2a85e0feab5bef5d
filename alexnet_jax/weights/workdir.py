"""The weights of a run."""

from pathlib import Path

import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.train.parallel import to_host
from alexnet_jax.train.workdir import CONFIG, read_json
from alexnet_jax.weights.pretrained import Pretrained


def load_workdir(workdir: Path, checkpoint: str = 'best') -> Pretrained:
  """Reads the newest good state of a run; its store has to be there, for mean and classes.

  Raises:
    UserError: no run, no such state, or no store.
  """
  if not (workdir / CONFIG).exists():
    raise UserError(f'{workdir} holds no run: there is no {CONFIG}')
  config = configs.from_json(read_json(workdir / CONFIG))
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, None)
  state, step = experiment.restored(workdir, checkpoint)
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}
  return Pretrained(
    source=f'{workdir}, step {step}',
    net=config.model.net,
    variables={name: _float32(to_host(tree)) for name, tree in variables.items()},
    classes=store.class_names,
    image_size=config.data.image_size,
    resize=config.data.resize,
    preprocessing=experiment.recipe.preprocessing,
  )


def _float32(tree):
  return {
    layer: {name: np.asarray(array, np.float32) for name, array in by_name.items()}
    for layer, by_name in tree.items()
  }
