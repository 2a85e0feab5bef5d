"""Trains ablations x seeds x values of config fields, here or on a cluster.

  python launch/sweep.py --config=configs/cifar10.py --ablations=baseline,no_lrn,tanh --seeds=3
  python launch/sweep.py --config=configs/digits.py --grid=optimizer.learning_rate=0.02,0.05 \\
    --jobs=2 -- --config.epochs=5
  python launch/sweep.py --config=configs/imagenet.py --ablations=baseline,one_tower \\
    --launcher='sbatch --gpus-per-node=1 --time=24:00:00 launch/slurm.sbatch' | sh
  python launch/sweep.py --config=configs/imagenet.py --launcher='TPU=my-tpu launch/tpu_vm.sh run'

Each run has its folder WORKDIR/<ablation>/seed<k>[/<field>=<value>]; `a+b` is both ablations in one
run.  --launcher prints the commands that start the unfinished runs, one per line.  The same command
skips finished runs and resumes the others; `python -m alexnet_jax.report WORKDIR` compares them.
Exit codes: 0 all done, 1 runs failed, 2 bad input, 75 interrupted and saved.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import RunsFailed, UserError

_ABLATIONS = flags.DEFINE_list(
  'ablations', ['baseline'], 'Ablations; "baseline" for none, "a+b" for both.'
)
_SEEDS = flags.DEFINE_list('seeds', ['1'], 'How many (3: 0, 1, 2) or which (0,4,7).')
_GRID = flags.DEFINE_multi_string('grid', [], 'FIELD=VALUE,VALUE,...; may be given several times.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/sweep', 'Folder of the sweep.')
_JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time.', lower_bound=1)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')
_LAUNCHER = flags.DEFINE_string(
  'launcher', None, 'Command to print before the flags of each unfinished run.'
)


def main() -> None:
  if flags.FLAGS.ablation:
    raise UserError(
      f'--ablation={",".join(flags.FLAGS.ablation)} is for one run: a sweep takes --ablations'
    )
  if _LAUNCHER.value and _JOBS.value > 1:
    raise UserError(
      f'--jobs={_JOBS.value}: only used without --launcher, whose runs are started elsewhere; leave'
      ' it out'
    )
  cli.read_config()  # reports mistakes in it before those in the grid
  from alexnet_jax.run.folder import RunFolder
  from alexnet_jax.sweep import runner, runs

  workdir = Path(_WORKDIR.value)
  seeds, grid = runs.parse_seeds(_SEEDS.value), runs.parse_grid(_GRID.value)
  found = runs.plan_runs(cli.config_words(), _ABLATIONS.value, seeds, grid, workdir)
  if _DRY_RUN.value:
    for run in found:
      print(f'{"done" if run.finished else "to do":<7}{shlex.join(run.command())}')
  elif _LAUNCHER.value:
    for run in found:
      if not run.finished:
        print(f'{_LAUNCHER.value} {shlex.join(run.words)}')
  elif reasons := runner.run_all(found, _JOBS.value):
    listed = ''.join(f'\n  {workdir / name}: {reason}' for name, reason in reasons.items())
    raise RunsFailed(
      f'{len(reasons)} of {len(found)} runs failed, see {RunFolder("").output} of each; the same'
      f' command tries them again{listed}'
    )
  else:
    print(f'all {len(found)} runs are done: python -m alexnet_jax.report {workdir}')


if __name__ == '__main__':
  if '--' in sys.argv:  # what follows it are fields of the config, as anywhere
    sys.argv.remove('--')
  sys.exit(cli.run(main))
