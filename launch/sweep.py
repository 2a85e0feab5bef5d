"""Ablations x seeds x values of fields, here or on a cluster.

  python launch/sweep.py --config=configs/cifar10.py --ablations=baseline,no_lrn,tanh --seeds=3
  python launch/sweep.py --config=configs/digits.py --grid=optimizer.learning_rate=0.02,0.05 \\
    --jobs=2 -- --config.epochs=5
  python launch/sweep.py --config=configs/imagenet.py --ablations=baseline,one_tower --slurm \\
    --slurm_options='--gres=gpu:1 --time=24:00:00' --submit
  python launch/sweep.py --config=configs/imagenet.py --seeds=2 --tpu=my-tpu  # prints commands

Each run has its folder WORKDIR/<ablation>/seed<k>[/<field>=<value>]; `a+b` is both ablations at
once.  The same command skips what is done and resumes the rest; then
`python -m alexnet_jax.report WORKDIR` compares.  Exit codes: 0 all done, 1 runs failed,
2 bad input, 75 interrupted and saved.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import RunsFailed, UserError

_ABLATIONS = flags.DEFINE_list(
  'ablations', ['baseline'], 'Ablations; "baseline" is none, "a+b" both.'
)
_SEEDS = flags.DEFINE_list('seeds', ['1'], 'How many (3: 0, 1, 2) or which (0,4,7).')
_GRID = flags.DEFINE_multi_string('grid', [], 'FIELD=VALUE,VALUE,...; may be given several times.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/sweep', 'Folder of the sweep.')
_JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time.', lower_bound=1)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands and stop.')
_SLURM = flags.DEFINE_bool('slurm', False, 'Write a Slurm job array instead of running here.')
_SLURM_OPTIONS = flags.DEFINE_string('slurm_options', '', 'Options of sbatch for each run.')
_SUBMIT = flags.DEFINE_bool('submit', False, 'With --slurm: submit it.')
_TPU = flags.DEFINE_string('tpu', None, 'Print the commands for this TPU VM and stop.')


def main() -> None:
  _check_flags()
  cli.read_config()  # its mistakes are told before those of the runs
  from alexnet_jax.sweep import runs as sweep

  workdir = Path(_WORKDIR.value)
  found = sweep.plan(
    _config_words(sys.argv[1:]),
    _ABLATIONS.value,
    sweep.parse_seeds(_SEEDS.value),
    sweep.parse_grid(_GRID.value),
    workdir,
  )
  unfinished = [run for run in found if not run.finished]
  if _DRY_RUN.value:
    print(sweep.listing(found))
  elif _TPU.value:
    for run in unfinished:
      print(f'TPU={shlex.quote(_TPU.value)} launch/tpu_vm.sh run {shlex.join(run.words)}')
  elif _SLURM.value:
    _slurm(unfinished, workdir)
  else:
    _run(found, workdir)


def _run(found, workdir: Path) -> None:
  from alexnet_jax.sweep import runner

  reasons = runner.run_all(found, _JOBS.value)
  if reasons:
    listed = ''.join(f'\n  {workdir / name}: {reason}' for name, reason in reasons.items())
    raise RunsFailed(
      f'{len(reasons)} of {len(found)} runs failed, see {runner.LOG} of each; the same command'
      f' tries them again{listed}'
    )
  print(f'all {len(found)} runs are done: python -m alexnet_jax.report {workdir}')


def _slurm(unfinished, workdir: Path) -> None:
  from alexnet_jax.sweep import slurm

  if not unfinished:
    print('all runs are done')
    return
  script = slurm.write(unfinished, _JOBS.value, workdir, _SLURM_OPTIONS.value)
  print(slurm.submit(script) if _SUBMIT.value else f'{len(unfinished)} runs: sbatch {script}')


def _check_flags() -> None:
  if flags.FLAGS.ablation:
    raise UserError(
      f'--ablation={",".join(flags.FLAGS.ablation)} is for one run: a sweep takes --ablations'
    )
  if _SLURM.value and _TPU.value:
    raise UserError('give either --slurm or --tpu, not both')
  if not _SLURM.value and (_SUBMIT.value or _SLURM_OPTIONS.value):
    raise UserError('--submit and --slurm_options need --slurm')


def _config_words(words: list[str]) -> list[str]:
  """The words of the command line that are about the config, values in words of their own too."""
  kept, value_follows = [], False
  for word in words:
    name, equals, _ = word.lstrip('-').partition('=')
    if word.startswith('-'):
      about = name == 'config' or name.startswith(('config.', 'noconfig.'))
      value_follows = about and not equals
      if about:
        kept.append(word)
    elif value_follows:
      kept.append(word)
      value_follows = False
  return kept


if __name__ == '__main__':
  if '--' in sys.argv:  # what follows it are fields of the config, as anywhere
    sys.argv.remove('--')
  sys.exit(cli.run(main))
