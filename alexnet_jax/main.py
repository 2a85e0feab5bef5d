"""The command: flags -> config -> plan -> training.

  python -m alexnet_jax.main --config=configs/digits.py
  python -m alexnet_jax.main --config=configs/cifar10.py:18pct --config.epochs=30
  python -m alexnet_jax.main --config=configs/cifar10.py:18pct --ablation=no_lrn
  python -m alexnet_jax.main --config=configs/imagenet.py --dry_run

The same command resumes a run that was stopped.  Exit codes: 0 done, 2 bad input, 3 diverged,
75 interrupted and saved.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import command, cpu

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/<config>[-<variant>][-<ablation>] if not given.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the plan and stop.')


def main() -> None:
  config, name = command.read_config()
  cpu.prepare_process()
  from alexnet_jax import plan  # after the flags: help and typos need no jax

  plan.show(config)
  if _DRY_RUN.value:
    return
  from alexnet_jax.train import loop

  loop.train(config, Path(_WORKDIR.value or Path('runs', name)), command=command.spoken())


if __name__ == '__main__':
  sys.exit(command.run(main))
