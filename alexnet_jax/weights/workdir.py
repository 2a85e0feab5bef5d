"""The folder of a run as a trained net."""

from pathlib import Path

import flax

from alexnet_jax.data import preparation, store
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.train.augment import Preprocessing
from alexnet_jax.train.checkpoint import Checkpoints
from alexnet_jax.train.experiment import make_preprocessing, needs_statistics
from alexnet_jax.train.preprocessing_file import PREPROCESSING, read_preprocessing
from alexnet_jax.train.workdir import read_config
from alexnet_jax.weights.pretrained import Pretrained


def load_workdir(workdir: Path | str, checkpoint: str = 'best') -> Pretrained:
  """The net of a run, without its data.

  Its weights are the moving average where the run kept one.  Nothing is changed in the folder, so
  the run may be going on.

  Args:
    workdir: folder of the run.
    checkpoint: 'best' or 'last'; a run without a best one yet gives its last.

  Raises:
    UserError: no run, no good checkpoint, or an older run without its preprocessing and data.
  """
  workdir = expand(workdir, 'workdir')
  config = read_config(workdir)
  checkpoints = Checkpoints(workdir / 'checkpoints', primary=False)
  try:
    kind = checkpoint if checkpoints.steps(checkpoint) else 'last'
    found = checkpoints.newest(kind)
  finally:
    checkpoints.close()
  if found is None:
    raise UserError(f'{workdir} has no checkpoint yet: let the run reach its first one')
  step, leaves, meta = found
  state = flax.traverse_util.unflatten_dict(leaves, sep='/')
  return Pretrained(
    source=f'{workdir} ({config.model.net}, {kind} checkpoint, step {step:,})',
    net=config.model.net,
    variables={
      'params': state.get('ema') or state['params'],
      'batch_stats': state.get('batch_stats', {}),
    },
    classes=tuple(meta.get('class_names') or meta['classes']),
    image_size=config.data.image_size,
    resize=config.data.resize,
    preprocessing=read_preprocessing(workdir) or _older_preprocessing(workdir, config),
    ablations=tuple(config.model.ablations),
  )


def _older_preprocessing(workdir: Path, config) -> Preprocessing:
  """That of a run which kept none: from its config, and its store where statistics are needed."""
  if config.input.normalization == 'weights':
    raise UserError(f'{workdir} has lost its {PREPROCESSING}: restore it from a copy')
  if not needs_statistics(config.input):
    return make_preprocessing(config, None)
  if config.data.source in ('digits', 'synthetic'):
    return make_preprocessing(config, preparation.prepare_store(config.data))
  path = preparation.store_path(config.data)
  if not path.exists():
    raise UserError(
      f'{workdir} is of a version that kept no {PREPROCESSING}, and the store of its data, whose'
      f' {config.input.normalization} it needs, is not at {path}: put the store there, or'
      ' point $TFDS_DATA_DIR to the data beside which it lies'
    )
  return make_preprocessing(config, store.open_store(path))
