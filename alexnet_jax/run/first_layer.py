"""The kernels of the first layer at each evaluation of a run, small enough to keep them all."""

from pathlib import Path

import numpy as np

from alexnet_jax import files
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.metrics import read_metrics


def write_first_layer(workdir: Path, step: int, kernel: np.ndarray) -> None:
  """Writes one kernel array (height, width, 3, kernels) as float16: 70 kB for 96 of 11x11."""
  files.write_npz(RunFolder(workdir).first_layer(step), kernel=kernel.astype(np.float16))


def read_first_layer(workdir: Path) -> dict[float, np.ndarray]:
  """Reads the kernels at the evaluations that are in the metrics.

  Returns:
    {epoch: float16 (height, width, 3, kernels)}, in order; {} for a run that kept none.

  Raises:
    UserError: a file is damaged.
  """
  records = read_metrics(workdir)
  epochs = {record['step']: record['epoch'] for record in records if 'epoch' in record}
  found = {}
  for step in [record['step'] for record in records if 'eval/top1_error' in record]:
    path = RunFolder(workdir).first_layer(step)
    if path.exists():
      arrays = files.read_npz(path, ['kernel'], 'remove it, and its evaluation is left out')
      found[epochs[step]] = arrays['kernel']
  return found
