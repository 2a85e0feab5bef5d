"""The folder of a run as a trained net."""

from pathlib import Path

import flax

from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.model import nets
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.preprocessing_file import read_preprocessing


def load_workdir(workdir: Path | str, checkpoint: str = 'best') -> Pretrained:
  """Loads the trained net of a run; its data are not needed.

  The weights are the exponential moving average if the run has one.  The folder is only read, so
  the run may still be going on.

  Args:
    workdir: folder of the run.
    checkpoint: 'best' or 'last'; a run without a best one yet gives its last.

  Raises:
    UserError: no run, no good checkpoint, or a run that has lost its preprocessing.
  """
  workdir = expand(workdir, 'workdir')
  folder = RunFolder(workdir)
  config = read_run_config(workdir)
  has_best = any((folder.checkpoints / 'best').glob('[0-9]*'))
  kind = 'best' if checkpoint == 'best' and has_best else 'last'
  step, variables, meta = read_variables(workdir, kind)
  return Pretrained(
    source=f'{workdir} ({nets.title(config.model)}, {kind} checkpoint, step {step:,})',
    net=config.model.net,
    variables=variables,
    classes=tuple(meta['class_names']),
    image_size=config.data.image_size,
    resize=config.data.resize,
    preprocessing=read_preprocessing(folder.preprocessing),
    ablations=tuple(config.model.ablations),
    width=config.model.width,
  )


def read_variables(workdir: Path, kind: str) -> tuple[int, dict, dict]:
  """Reads the newest intact checkpoint, 'last' or 'best', and changes nothing in the folder.

  Returns:
    Its step, {'params', 'batch_stats'} to evaluate, and what was saved with it.

  Raises:
    UserError: there is none, or all are damaged.
  """
  checkpoints = Checkpoints(RunFolder(workdir).checkpoints, primary=False)
  try:
    found = checkpoints.newest(kind)
  finally:
    checkpoints.close()
  if found is None:
    raise UserError(f'{workdir} has no {kind} checkpoint yet: let the run reach its first one')
  step, leaves, meta = found
  state = flax.traverse_util.unflatten_dict(leaves, sep='/')
  params = state.get('ema') or state['params']
  return step, {'params': params, 'batch_stats': state.get('batch_stats', {})}, meta
