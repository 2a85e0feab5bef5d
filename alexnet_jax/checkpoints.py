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

  from alexnet_jax.run.checkpoint_list import print_checkpoints
  from alexnet_jax.run.folder import RunFolder

  jax.config.update('jax_platforms', 'cpu')  # a job may be training on the accelerator
  print_checkpoints(RunFolder(_WORKDIR.value).checkpoints, _VERIFY.value)


if __name__ == '__main__':
  sys.exit(cli.run(main, configured=False))
