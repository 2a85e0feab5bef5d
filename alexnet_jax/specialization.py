"""Do the two towers of conv1 specialize, one in gray and one in color? Paper section 6.1.

  python -m alexnet_jax.specialization --workdir=runs/a --workdir=runs/b --workdir=runs/one_tower
  python -m alexnet_jax.specialization --workdir=runs/a --figure=a.png

The chroma index of a kernel is the share of its energy that is not along the gray axis: 0 of a gray
kernel, 1 of opponent colors, 2/3 of noise (`results/chroma.py`).  For each run it prints the mean
index of both towers' kernels at initialization and at every evaluation, and the share of 10,000
random splits of all kernels into halves whose means differ as much (two-sided p).  A run of a net
without groups is a control: its halves mean nothing.  The folders are only read, but for the
figure, which goes to the figures of the first run if there is no --figure.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError

_WORKDIR = flags.DEFINE_multi_string('workdir', [], 'Folder of a run; may be given several times.')
_FIGURE = flags.DEFINE_string('figure', None, 'PNG of the figure.')


def main() -> None:
  if not _WORKDIR.value:
    raise UserError('--workdir is missing: give the folder of a run, several times for several')
  import jax

  from alexnet_jax import files
  from alexnet_jax.inference.specialization import read_history, table_of_histories
  from alexnet_jax.results import chroma
  from alexnet_jax.run.folder import RunFolder

  jax.config.update('jax_platforms', 'cpu')  # a job may be training on the accelerator
  workdirs = [Path(name) for name in _WORKDIR.value]
  histories = [read_history(path) for path in workdirs]
  print('\n'.join(table_of_histories(histories)))
  figure = Path(_FIGURE.value or RunFolder(workdirs[0]).figure('specialization'))
  with files.one_line_error(str(figure)):
    chroma.draw_histories(histories, figure)
  print(figure)


if __name__ == '__main__':
  sys.exit(cli.run(main, configured=False))
