"""A sweep as a Slurm job array: one task a run, each going on where it was stopped.

Slurm signals the step before the time is up; the run saves and exits with 75, and its task goes
back into the queue.  Other requests stand in --slurm_options.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.sweep.runs import PlannedRun

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{count}%{jobs}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
{options}
cd {here}
command=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {commands})
echo "$command"
eval "srun $command"
code=$?
if [ $code -eq {again} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def write(runs: Sequence[PlannedRun], jobs: int, workdir: Path, options: str) -> Path:
  """Writes WORKDIR/commands.txt, a command a line, and WORKDIR/sweep.sbatch, which is returned.

  Args:
    runs: those that are not done.
    jobs: how many may run at a time.
    workdir: folder of the sweep.
    options: of sbatch, such as "--gres=gpu:1 --time=8:00:00".
  """
  folder = workdir.resolve()
  commands = [shlex.join(run.command(sys.executable)) for run in runs]
  files.write_text(folder / 'commands.txt', ''.join(f'{command}\n' for command in commands))
  script = _SCRIPT.format(
    name=shlex.quote(folder.name),
    count=len(runs),
    jobs=jobs,
    output=shlex.quote(f'{folder}/slurm-%A_%a.out'),
    options=''.join(f'#SBATCH {option}\n' for option in shlex.split(options)),
    here=shlex.quote(str(Path.cwd())),
    commands=shlex.quote(str(folder / 'commands.txt')),
    again=Interrupted.exit_code,
  )
  files.write_text(folder / 'sweep.sbatch', script)
  return folder / 'sweep.sbatch'


def submit(script: Path) -> str:
  """Gives the script to sbatch; returns what that says."""
  try:
    done = subprocess.run(['sbatch', script], capture_output=True, text=True, check=False)
  except FileNotFoundError:
    raise UserError(
      f'--submit: there is no sbatch here; submit {script} on a machine of the cluster'
    ) from None
  if done.returncode:
    raise UserError(f'sbatch refused {script}: {" ".join(done.stderr.split())}')
  return done.stdout.strip()
