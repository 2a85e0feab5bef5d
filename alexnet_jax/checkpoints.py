"""Lists the checkpoints of a run.

  python -m alexnet_jax.checkpoints --workdir=runs/digits [--verify]

Exit codes: 0 all are well, 2 one is not or there is none.
"""

import sys

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Read all and check every checksum.')


def main() -> None:
  if not _WORKDIR.value:
    raise UserError('--workdir is missing: give the folder of a run')
  import jax

  from alexnet_jax.run.checkpoint_list import list_checkpoints
  from alexnet_jax.run.folder import RunFolder
  from alexnet_jax.terminal import aligned, si

  jax.config.update('jax_platforms', 'cpu')  # a job may be training on the accelerator
  folder = RunFolder(_WORKDIR.value).checkpoints
  found = list_checkpoints(folder, verify=_VERIFY.value)
  if not found:
    raise UserError(f'no checkpoints in {folder}: the run has not saved yet')
  cells = [('kind', 'step', 'size', 'metrics', 'health')]
  for each in found:
    metrics = ', '.join(f'{name} {value:.4g}' for name, value in each.metrics.items())
    cells.append((each.kind, f'{each.step:,}', si(each.bytes, 'B'), metrics, each.health))
  print('\n'.join([str(folder), *aligned(cells, left=(0, 3, 4))]))
  damaged = sum(each.health.startswith('damaged:') for each in found)
  if damaged:
    raise UserError(
      f'{damaged} of {len(found)} checkpoints in {folder} are damaged; a restart passes over them'
    )


if __name__ == '__main__':
  sys.exit(cli.run(main, configured=False))
