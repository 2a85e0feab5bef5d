"""Sweeps: what their members are, and that every one ends whatever happens to the others."""

import dataclasses
import fcntl
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_jax import config as configs
from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.sweep import slurm
from alexnet_jax.sweep.board import Board, progress
from alexnet_jax.sweep.members import Member, members, parse_grid, parse_seeds
from alexnet_jax.sweep.runner import LOCK, Runner

# ml_collections reads config files in a way that Python 3.12 will not know.
pytestmark = [
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
  # Other tests have started JAX's threads in this process, which a sweep's never does.
  pytest.mark.filterwarnings('ignore:os.fork:RuntimeWarning'),
]

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '',
  'PYTHONPATH': str(ROOT),
}
DIGITS = [f'--config={ROOT}/configs/digits.py']
SMALL = [
  '--config.epochs=30',
  '--config.data.train_examples=200',
  '--config.log.every_steps=1',
  '--config.eval.every_epochs=100',
  '--config.checkpoint.every_epochs=100',
]


def sweep(*words):
  return [sys.executable, f'{ROOT}/launch/sweep.py', *words]


def run(*words, **environment):
  return subprocess.run(
    sweep(*words),
    cwd=ROOT,
    env=ENVIRONMENT | environment,
    capture_output=True,
    text=True,
    timeout=900,
  )


def wait_until(condition, seconds=240):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


# What a sweep consists of.


def test_members_are_the_product_with_a_folder_each(tmp_path):
  grid = [('optimizer.learning_rate', ['0.02', '0.05'])]
  found = members(DIGITS, ['baseline', 'no_lrn+tanh'], [0, 4], grid, tmp_path)
  assert [member.name for member in found] == [
    f'{change}/seed{seed}/optimizer.learning_rate={rate}'
    for seed in (0, 4)
    for change in ('baseline', 'no_lrn+tanh')
    for rate in ('0.02', '0.05')
  ]
  assert len({member.workdir for member in found}) == 8
  last = found[-1]
  assert last.workdir == tmp_path / 'no_lrn+tanh' / 'seed4' / 'optimizer.learning_rate=0.05'
  assert (last.config.seed, last.config.optimizer.learning_rate) == (4, 0.05)
  assert last.config.model.edits == ('no_lrn', 'tanh')
  assert found[0].config.model.edits == ()


def test_the_commands_of_members_give_their_configs(tmp_path):
  grid = [('optimizer.schedule.milestones', ['(8.0,)', '(5.0,6.0)']), ('batch_size', ['32'])]
  words = [*DIGITS, '--config.optimizer.schedule.kind=step', '--noconfig.log.tensorboard']
  for member in members(words, ['no_lrn'], [2], grid, tmp_path):
    plan = subprocess.run(
      [*member.command(sys.executable), '--dry_run'],
      cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert 'digits (no_lrn)' in plan and 'of 32 images' in plan
    assert not member.config.log.tensorboard
    for epoch in member.config.optimizer.schedule.milestones:
      assert f'from epoch {epoch:g}' in plan


def test_grids_and_seeds_are_read():
  assert parse_grid(['config.epochs=1,2.5']) == [('epochs', ['1', '2.5'])]
  assert parse_grid(["optimizer.layer_weight_decay={'a': 1, 'b': 2},{}"]) == [
    ('optimizer.layer_weight_decay', ["{'a': 1, 'b': 2}", '{}'])
  ]
  assert parse_seeds(['3']) == [0, 1, 2] and parse_seeds(['0', '7']) == [0, 7]


@pytest.mark.parametrize(
  'words, message',
  [
    (['--ablations=baseline,no_lnr'], '--ablation=no_lnr: there is no such ablation, did you mean'),
    (['--ablations=scalar_mean'], '--ablation=scalar_mean: no mean image is subtracted'),
    (['--ablations=tanh,tanh'], 'tanh/seed0 occurs twice'),
    (['--ablation=tanh'], 'a sweep takes --ablations'),
    (['--grid=optimizer.learning_rat=1'], 'did you mean optimizer.learning_rate?'),
    (['--grid=optimizer.learning_rate=fast'], "could not convert string to float: 'fast'"),
    (['--grid=optimizer.learning_rate=0.1,0'], 'learning_rate=0.0: must be more than 0'),
    (['--grid=epochs=1,1'], 'with different values'),
    (['--grid=epochs'], 'FIELD=VALUE,VALUE'),
    (['--grid=epochs=1', '--grid=epochs=2'], 'give each field once'),
    (['--grid=seed=1,2'], 'seeds as --seeds'),
    (['--seeds=none'], '--seeds=none: must be how many'),
    (['--seeds=0'], '--seeds=0: must be how many'),
    (['--', '--config.epoch=5'], 'config.epoch is not a field: did you mean config.epochs?'),
    (['--submit'], '--submit and --slurm_options need --slurm'),
    (['--jobs=0'], 'jobs'),
  ],
)
def test_a_mistake_is_refused_before_anything_starts(words, message, tmp_path):
  done = run(*DIGITS, f'--workdir={tmp_path / "s"}', *words)
  assert done.returncode == 2 and done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line, line
  assert not (tmp_path / 's').exists()


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path):
  other = tmp_path / 'tanh' / 'seed0'
  other.mkdir(parents=True)
  (old,) = members(DIGITS, ['tanh'], [0], [], tmp_path)
  old.config.epochs = 7.0
  (other / 'config.json').write_text(json.dumps(configs.to_json(old.config)))
  with pytest.raises(UserError, match=r'tanh/seed0 holds a run .*epochs: 7.0 -> 15.0.*--workdir'):
    members(DIGITS, ['baseline', 'tanh'], [0], [], tmp_path)


# How members are run: programs in place of training.


@dataclasses.dataclass(frozen=True)
class Program(Member):
  """A member that runs some Python; `done()` there makes it finished."""

  code: str = ''

  def command(self, python='python'):
    done = f'def done(): open({str(self.workdir / "results.json")!r}, "w").write("{{}}")'
    return [sys.executable, '-c', f'import os, signal, sys, time\n{done}\n{self.code}']


def program(folder, name, code):
  config = configs.default()
  return Program(name, folder / name, config, (), code)


def run_all(folder, programs, jobs=1):
  """The states after running, and what was shown."""
  runner = Runner(programs, jobs, folder / 'sweep.json', 'the command')
  stream = io.StringIO()
  with Board(runner, jobs, stream) as board:
    try:
      runner.run(board.show, seconds=0.01)
    finally:
      written = json.loads((folder / 'sweep.json').read_text())
      assert written['members'] == {n: dataclasses.asdict(s) for n, s in runner.states.items()}
  return runner.states, stream.getvalue()


def test_a_failed_member_is_recorded_and_the_others_go_on(tmp_path):
  programs = [
    program(tmp_path, 'a', 'print("error: no data"); sys.exit(2)'),
    program(tmp_path, 'b', 'os.kill(os.getpid(), signal.SIGKILL)'),
    program(tmp_path, 'c', 'print("nothing written")'),
    program(tmp_path, 'd', 'done()'),
  ]
  states, shown = run_all(tmp_path, programs)
  assert [state.status for state in states.values()] == ['failed', 'failed', 'failed', 'done']
  assert [state.code for state in states.values()] == [2, -9, 0, 0]
  assert states['a'].error == 'error: no data' and states['b'].error == 'killed by SIGKILL'
  assert (tmp_path / 'a' / 'output.log').read_text() == 'error: no data\n'
  assert re.search(r'^\d\d:\d\d:\d\d  a  failed \(exit 2\)  error: no data$', shown, re.M)
  assert re.search(r'^\S+  d  done$', shown, re.M)


def test_what_is_done_is_not_run_again_and_what_failed_is(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'results.json').write_text('{}')
  once = 'done() if os.path.exists("{0}") else open("{0}", "w").close()'.format(tmp_path / 'mark')
  programs = [program(tmp_path, 'a', 'sys.exit(9)'), program(tmp_path, 'b', once)]
  assert [s.status for s in run_all(tmp_path, programs)[0].values()] == ['done', 'failed']
  assert [s.status for s in run_all(tmp_path, programs)[0].values()] == ['done', 'done']


def test_members_run_at_once_and_no_more_than_asked(tmp_path):
  count = (
    'open("{0}/" + str(os.getpid()), "w").close()\n'
    'end = time.time() + 30\n'  # a busy machine starts programs slowly
    'while len(os.listdir("{0}")) < 2 and time.time() < end: time.sleep(0.01)\n'
    'time.sleep(0.4)\n'
    'open("{0}/most", "a").write(str(len(os.listdir("{0}")) - os.path.exists("{0}/most")) + " ")\n'
    'os.remove("{0}/" + str(os.getpid())); done()'
  ).format(tmp_path / 'running')
  (tmp_path / 'running').mkdir()
  states, _ = run_all(tmp_path, [program(tmp_path, name, count) for name in 'abcd'], jobs=2)
  assert {state.status for state in states.values()} == {'done'}
  assert max(map(int, (tmp_path / 'running' / 'most').read_text().split())) == 2


def test_a_member_that_another_process_runs_is_waited_for(tmp_path):
  (tmp_path / 'a').mkdir()
  with open(tmp_path / 'a' / LOCK, 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    other = subprocess.Popen(
      [sys.executable, '-c', f'import time; time.sleep(0.7); open({str(tmp_path)!r} +'
       ' "/a/results.json", "w").write("{}")'], pass_fds=(lock.fileno(),)
    )  # fmt: skip
  states, shown = run_all(tmp_path, [program(tmp_path, 'a', 'sys.exit(9)')])
  assert other.wait() == 0
  assert states['a'].status == 'done' and 'elsewhere' in shown


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_lets_its_members_save(tmp_path, number):
  listen = (
    'def save(*_): open("saved", "w").close(); sys.exit(75)\n'
    f'os.chdir({str(tmp_path)!r}); signal.signal(signal.SIGTERM, save)\n'
    f'os.kill(os.getppid(), {int(number)}); time.sleep(60)'
  )
  programs = [program(tmp_path, 'a', 'done()'), program(tmp_path, 'b', listen)]
  programs.append(program(tmp_path, 'c', 'done()'))
  runner = Runner(programs, 1, tmp_path / 'sweep.json', '')
  before = signal.getsignal(number)
  with pytest.raises(Interrupted, match=f'{number.name} with 1 of 3 .* the same command goes on'):
    runner.run(lambda: None, seconds=0.01)
  assert (tmp_path / 'saved').exists()
  assert [s.status for s in runner.states.values()] == ['done', 'stopped', 'waiting']
  assert signal.getsignal(number) == before


def test_the_second_interrupt_kills(tmp_path):
  deaf = (
    'signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n'
    'os.kill(os.getppid(), signal.SIGINT)\n'
    'while True: time.sleep(60)'
  )
  runner = Runner([program(tmp_path, 'a', deaf)], 1, tmp_path / 'sweep.json', '')
  with pytest.raises(Interrupted):
    runner.run(lambda: None, seconds=0.01)
  assert runner.states['a'].code == -signal.SIGKILL


def test_progress_is_the_newest_of_each_metric_whatever_the_last_line_is(tmp_path):
  assert progress(tmp_path) == {}
  lines = [json.dumps({'step': i, 'epoch': i / 10, 'train/loss': 1.0}) for i in range(5000)]
  lines.insert(4000, json.dumps({'step': 4000, 'eval/top1_error': 0.25, 'eval/loss': None}))
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 5000, "epo')
  newest = progress(tmp_path)
  assert newest == {'step': 4999, 'epoch': 499.9, 'train/loss': 1.0, 'eval/top1_error': 0.25}


def test_a_terminal_shows_one_table(tmp_path, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('LINES', '12')
  programs = [program(tmp_path, f'm{i}', 'sys.exit(2)') for i in range(3)]
  programs += [program(tmp_path, f'm{i}', 'done()') for i in range(3, 30)]
  for member in programs[3:]:
    member.workdir.mkdir()
    (member.workdir / 'results.json').write_text('{}')
  stream = Terminal()
  runner = Runner(programs, 1, tmp_path / 'sweep.json', '')
  with Board(runner, 1, stream) as board:
    runner.run(board.show, seconds=0.01)
  text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', stream.getvalue())
  last = text[text.rindex('27 of 30 done, 3 failed') - 1000 :]
  assert all(f'm{i} ' in last for i in range(3))  # failures first, where there is no room for all


# Other machines.


def test_a_slurm_array_runs_each_unfinished_member_once_and_requeues_it(tmp_path):
  """The script with stand-ins for Slurm's own programs."""
  found = members(DIGITS, ['baseline', 'tanh'], [0, 1], [], tmp_path / 'a sweep')
  script = slurm.write(found, 3, tmp_path / 'a sweep', '--gres=gpu:1 --time=8:00:00')
  text = script.read_text()
  assert '#SBATCH --array=1-4%3\n' in text and '\n#SBATCH --gres=gpu:1\n' in text
  assert subprocess.run(['bash', '-n', script], check=False).returncode == 0
  programs = tmp_path / 'bin'
  programs.mkdir()
  (programs / 'srun').write_text('#!/bin/bash\nprintf "%s\\n" "$@" > ran; exit 75\n')
  (programs / 'scontrol').write_text('#!/bin/bash\necho "$@" > requeued\n')
  for name in ('srun', 'scontrol'):
    (programs / name).chmod(0o755)
  task = {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_JOB_ID': '17'}
  environment = ENVIRONMENT | task | {'PATH': f'{programs}:{os.environ["PATH"]}'}
  here = re.search(r'^cd (.*)$', text, re.M)[1]
  moved = text.replace(f'cd {here}', f'cd {shlex.quote(str(tmp_path))}')
  done = subprocess.run(['bash', '-c', moved], env=environment, check=False, capture_output=True)
  assert done.returncode == 75
  assert (tmp_path / 'ran').read_text().splitlines() == found[2].command(sys.executable)
  assert (tmp_path / 'requeued').read_text() == 'requeue 17_3\n'


def test_the_command_writes_submits_and_prints(tmp_path):
  programs = tmp_path / 'bin'
  programs.mkdir()
  words = [*DIGITS, '--seeds=2', f'--workdir={tmp_path / "s"}']
  written = run(*words, '--slurm')
  assert written.stdout == f'2 members: sbatch {tmp_path}/s/sweep.sbatch\n'
  refused = run(*words, '--slurm', '--submit', PATH=str(programs))
  assert refused.returncode == 2 and 'there is no sbatch here' in refused.stderr
  (programs / 'sbatch').write_text('#!/bin/sh\necho Submitted $1\n')
  (programs / 'sbatch').chmod(0o755)
  submitted = run(*words, '--slurm', '--submit', PATH=f'{programs}:/usr/bin:/bin')
  assert submitted.stdout == f'Submitted {tmp_path}/s/sweep.sbatch\n'
  printed = run(*words, '--tpu=my-tpu').stdout.splitlines()
  assert len(printed) == 2
  assert printed[1].startswith('TPU=my-tpu launch/tpu_vm.sh run --config=')
  assert printed[1].endswith(f'--config.seed=1 --workdir={tmp_path}/s/baseline/seed1')
  listed = run(*words, '--dry_run').stdout.splitlines()
  assert [line.split()[:2] for line in listed] == [['to', 'do']] * 2


# The whole, with real training.


def test_a_killed_sweep_goes_on_where_it_was_and_trains_all_its_members(tmp_path):
  words = [*DIGITS, '--ablations=baseline,no_lrn', f'--workdir={tmp_path}', '--', *SMALL]
  first = tmp_path / 'baseline' / 'seed0'

  def steps():
    return progress(first).get('step', 0)

  with subprocess.Popen(sweep(*words), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as one:
    try:
      wait_until(lambda: steps() > 2)
    finally:
      one.kill()
  if sys.platform == 'linux':  # its member saves and ends
    wait_until(lambda: 'which is saved' in (first / 'output.log').read_text())
    assert not (first / 'results.json').exists()
  done = run(*words)
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'all 2 members are done: python -m alexnet_jax.report {tmp_path}\n'
  assert 'resuming from step' in (first / 'train.log').read_text()
  for name in ('baseline', 'no_lrn'):
    workdir = tmp_path / name / 'seed0'
    assert json.loads((workdir / 'results.json').read_text())['steps'] == 94
    edits = json.loads((workdir / 'config.json').read_text())['model']['edits']
    assert edits == [name] * (name != 'baseline')
  again = run(*words)
  assert again.returncode == 0 and 'running' not in again.stderr
  other = run(*words, '--config.epochs=2')
  assert other.returncode == 2 and 'epochs: 30.0 -> 2.0' in other.stderr
