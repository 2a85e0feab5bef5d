"""Chroma of the first layer of runs: do its towers specialize? (paper section 6.1)"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.results.chroma import ChromaHistory, chroma_index, compare_halves
from alexnet_jax.run.claim import read_run_config
from alexnet_jax.run.first_layer import read_first_layer
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.preprocessing_file import read_preprocessing
from alexnet_jax.terminal import aligned
from alexnet_jax.train.step import init_variables
from alexnet_jax.weights.run_folder import read_variables


def read_history(workdir: Path) -> ChromaHistory:
  """The chroma of a run's first layer at initialization and at each evaluation.

  The initial kernels are drawn again from the config's seed, unless the run started from weights.
  Where no kernels were saved at evaluations, those of the last checkpoint are taken.

  Args:
    workdir: folder of the run, which is only read.

  Raises:
    UserError: no run or no checkpoint, or an odd number of kernels.
  """
  config = read_run_config(workdir)
  table = nets.table_of(config, 2)  # the first layer does not depend on the classes
  first = table[0]
  if not isinstance(first, layers.Conv) or first.features % 2:
    raise UserError(f'{workdir}: {first} has no two halves of kernels: give runs of other nets')
  kernels = {}
  if not config.weights:
    initial = init_variables(AlexNet(table), config.seed, config.input.crop)
    kernels[0.0] = np.asarray(initial['params'][first.name]['kernel'])
  if kept := read_first_layer(workdir):
    kernels |= kept
  else:
    step, variables, meta = read_variables(workdir, 'last')
    epoch = step * config.batch_size / meta['train_images']
    kernels[epoch] = variables['params'][first.name]['kernel']
  # For pixels of 0 to 255: the preprocessing may scale each channel differently.
  scale = read_preprocessing(RunFolder(workdir).preprocessing).scale[:, None]
  kernels = {epoch: kernel * scale for epoch, kernel in kernels.items()}
  tests = {epoch: compare_halves(chroma_index(kernel)) for epoch, kernel in kernels.items()}
  grouped = any(row.groups > 1 for row in table if isinstance(row, layers.Conv))
  name = '/'.join(workdir.absolute().parts[-2:])
  return ChromaHistory(name, nets.title(config.model), grouped, kernels, tests)


def table_of_histories(histories: Sequence[ChromaHistory]) -> list[str]:
  """A line for each run and epoch."""
  rows = [('run', 'net', 'halves are', 'epoch', 'first', 'second', 'difference', 'p')]
  for history in histories:
    names = (history.name, history.net, 'towers' if history.grouped else 'arbitrary')
    for epoch, test in history.tests.items():
      means = (f'{test.first:.3f}', f'{test.second:.3f}', f'{test.difference:+.3f}')
      rows.append((*names, f'{epoch:.2f}', *means, f'{test.p:.4f}'))
  return aligned(rows, left=(0, 1, 2))
