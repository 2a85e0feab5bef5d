"""Sweeps: what their runs are, and that every one ends whatever happens to the others."""

import contextlib
import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, ROOT, error_line, wait_until

from alexnet_jax import config as configs
from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.run.folder import lock_workdir
from alexnet_jax.sweep.runner import run_all
from alexnet_jax.sweep.runs import PlannedRun, parse_grid, parse_seeds, plan_runs

# ml_collections reads config files in a way that Python 3.12 will not know.
pytestmark = [
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
  # Other tests have started JAX's threads in this process, which a sweep's never does.
  pytest.mark.filterwarnings('ignore:os.fork:RuntimeWarning'),
  pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning'),
]

DIGITS = [f'--config={ROOT}/configs/digits.py']


def sweep(*words):
  return [sys.executable, f'{ROOT}/launch/sweep.py', *words]


def run(*words, **environment):
  return subprocess.run(
    sweep(*words),
    cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=900,
  )  # fmt: skip


# What a sweep consists of.


def test_runs_are_the_product_with_a_folder_each(tmp_path):
  grid = [('optimizer.learning_rate', ['0.02', '0.05'])]
  found = plan_runs(DIGITS, ['baseline', 'no_lrn+tanh'], [0, 4], grid, tmp_path)
  assert [run.name for run in found] == [
    f'{change}/seed{seed}/optimizer.learning_rate={rate}'
    for seed in (0, 4)
    for change in ('baseline', 'no_lrn+tanh')
    for rate in ('0.02', '0.05')
  ]
  assert [run.workdir for run in found] == [tmp_path / run.name for run in found]
  last = found[-1]
  assert (last.config.seed, last.config.optimizer.learning_rate) == (4, 0.05)
  assert last.config.model.ablations == ('no_lrn', 'tanh')
  assert found[0].config.model.ablations == ()


def test_grids_and_seeds_are_read():
  assert parse_grid(['config.epochs=1,2.5']) == [('epochs', ['1', '2.5'])]
  assert parse_grid(["optimizer.layer_weight_decay={'a': 1, 'b': 2},{}"]) == [
    ('optimizer.layer_weight_decay', ["{'a': 1, 'b': 2}", '{}'])
  ]
  assert parse_seeds(['3']) == [0, 1, 2] and parse_seeds(['0', '7']) == [0, 7]


@pytest.mark.parametrize(
  'ablations, grid, seeds, message',
  [
    ('baseline,no_lnr', [], '1', '--ablation=no_lnr: unknown ablation, did you mean'),
    ('tanh,tanh', [], '1', 'tanh/seed0 occurs twice'),
    ('tanh', ['optimizer.learning_rat=1'], '1', 'did you mean optimizer.learning_rate?'),
    ('tanh', ['optimizer.learning_rate=0.1,0'], '1', 'learning_rate=0.0: must be more than 0'),
    ('tanh', ['epochs=1,1'], '1', 'with different values'),
    ('tanh', ['epochs'], '1', 'FIELD=VALUE,VALUE'),
    ('tanh', ['epochs=1', 'epochs=2'], '1', 'give each field once'),
    ('tanh', ['seed=1,2'], '1', 'seeds as --seeds'),
    ('tanh', [], 'none', '--seeds=none: must be how many'),
    ('tanh', [], '0', '--seeds=0: must be how many'),
  ],
)
def test_a_mistake_is_refused(ablations, grid, seeds, message, tmp_path):
  with pytest.raises(UserError, match=re.escape(message)):
    plan_runs(
      DIGITS, ablations.split(','), parse_seeds(seeds.split(',')), parse_grid(grid), tmp_path
    )
  assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path):
  (old,) = plan_runs(DIGITS, ['tanh'], [0], [], tmp_path)
  old.config.epochs = 7.0
  old.workdir.mkdir(parents=True)
  (old.workdir / 'config.json').write_text(json.dumps(configs.to_json(old.config)))
  with pytest.raises(UserError, match=r'tanh/seed0 holds a run .*epochs: 7.0 -> 15.0.*--workdir'):
    plan_runs(DIGITS, ['baseline', 'tanh'], [0], [], tmp_path)


# How runs are run: programs in place of training.


@dataclasses.dataclass(frozen=True)
class Program(PlannedRun):
  """A run of some Python; `done()` there makes it finished."""

  code: str = ''

  def command(self, python='python'):
    done = f'def done(): open({str(self.workdir / "results.json")!r}, "w").write("{{}}")'
    return [sys.executable, '-c', f'import os, signal, sys, time\n{done}\n{self.code}']


def programs(folder, **codes):
  return [Program(name, folder / name, None, (), code) for name, code in codes.items()]


@pytest.mark.slow
def test_what_fails_is_told_and_tried_again_and_the_others_go_on(tmp_path, capsys):
  (tmp_path / 'e').mkdir()
  (tmp_path / 'e' / 'results.json').write_text('{}')
  once = 'if os.path.exists("{0}"): done()\nelse: open("{0}", "w"); print("error: no data"); '
  found = programs(
    tmp_path,
    a=once.format(tmp_path / 'mark') + 'sys.exit(2)',
    b='os.kill(os.getpid(), signal.SIGKILL)',
    c='print("nothing written")',
    d='done()',
    e='sys.exit(9)',
  )
  assert run_all(found, 1) == {
    'a': 'exit code 2: error: no data',
    'b': 'killed by SIGKILL',
    'c': 'exit code 0: nothing written',
  }
  assert (tmp_path / 'a' / 'output.log').read_text() == 'error: no data\n'
  lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()]
  assert lines[:2] == ['a  started', 'a  exit code 2: error: no data']
  assert lines[-2:] == ['d  started', 'd  done']
  assert run_all([found[0], *found[3:]], 1) == {}
  assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.slow
def test_runs_run_at_once(tmp_path):
  """Each waits for the other."""
  wait = (
    'open("{0}", "w").close(); end = time.time() + 60\n'
    'while not os.path.exists("{1}") and time.time() < end: time.sleep(0.01)\n'
    'if os.path.exists("{1}"): done()'
  )
  a, b = tmp_path / 'ran a', tmp_path / 'ran b'
  assert run_all(programs(tmp_path, a=wait.format(a, b), b=wait.format(b, a)), 2) == {}


def test_a_run_that_another_process_still_saves_is_waited_for(tmp_path):
  (found,) = programs(tmp_path, a='sys.exit(9)')
  lock = contextlib.ExitStack()
  lock.enter_context(lock_workdir(found.workdir))

  def save():
    (found.workdir / 'results.json').write_text('{}')
    lock.close()

  threading.Timer(0.5, save).start()
  assert run_all([found], 1) == {}


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_lets_its_runs_save(tmp_path, number):
  listen = (
    'def save(*_): open("saved", "a").write("x"); sys.exit(75)\n'
    f'os.chdir({str(tmp_path)!r}); signal.signal(signal.SIGTERM, save)\n'
    f'os.kill(os.getppid(), {int(number)}); time.sleep(60)'
  )
  before = signal.getsignal(number)
  with pytest.raises(Interrupted, match=f'{number.name} with 1 of 3 .* same command resumes them'):
    run_all(programs(tmp_path, a='done()', b=listen, c='done()'), 1)
  assert (tmp_path / 'saved').read_text() == 'x' and not (tmp_path / 'c' / 'output.log').exists()
  assert signal.getsignal(number) == before


@pytest.mark.slow
def test_the_second_interrupt_kills(tmp_path, capsys):
  deaf = (
    'signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n'
    'os.kill(os.getppid(), signal.SIGINT)\n'
    'while True: time.sleep(60)'
  )
  with pytest.raises(Interrupted):
    run_all(programs(tmp_path, a=deaf), 1)
  assert 'a  killed by SIGKILL' in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_of_unfinished_runs_are_printed(tmp_path):
  words = [*DIGITS, '--seeds=2', f'--workdir={tmp_path / "a sweep"}']
  listed = run(*words, '--dry_run').stdout.splitlines()
  assert [line.split()[:2] for line in listed] == [['to', 'do']] * 2
  (tmp_path / 'a sweep/baseline/seed0').mkdir(parents=True)
  (tmp_path / 'a sweep/baseline/seed0/results.json').write_text('{}')
  assert '--jobs=2: only used without' in error_line(run(*words, '--launcher=x', '--jobs=2'))
  assert 'a sweep takes --ablations' in error_line(run(*words, '--ablation=tanh'))
  (printed,) = run(*words, '--launcher=TPU=x launch/tpu_vm.sh run').stdout.splitlines()
  assert shlex.split(printed) == [
    *('TPU=x', 'launch/tpu_vm.sh', 'run', *DIGITS, '--config.seed=1'),
    f'--workdir={tmp_path}/a sweep/baseline/seed1',
  ]


# Real training.


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was_and_trains_all_its_runs(tmp_path):
  small = ['epochs=30', 'data.train_examples=200', 'log.every_steps=1']
  small += ['eval.every_epochs=100', 'checkpoint.every_epochs=100']
  words = [*DIGITS, '--ablations=baseline,no_lrn', '--grid=optimizer.schedule.milestones=(8.0,9.0)']
  words += [f'--workdir={tmp_path}', '--', *(f'--config.{word}' for word in small)]
  words += ['--config.optimizer.schedule.kind=step', '--noconfig.log.tensorboard']
  point = Path('seed0', 'optimizer.schedule.milestones=_8.0,9.0_')
  first = tmp_path / 'baseline' / point
  with subprocess.Popen(sweep(*words), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as one:
    try:
      metrics = first / 'metrics.jsonl'
      wait_until(lambda: metrics.exists() and metrics.read_text().count('\n') > 2)
    finally:
      one.kill()
  done = run(*words)  # waits until the run that lost its sweep has saved
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'all 2 runs are done: python -m alexnet_jax.report {tmp_path}\n'
  if sys.platform == 'linux':
    assert 'which is saved' in (first / 'output.log').read_text()
    assert 'resuming from step' in (first / 'train.log').read_text()
  for name in ('baseline', 'no_lrn'):
    workdir = tmp_path / name / point
    assert json.loads((workdir / 'results.json').read_text())['steps'] == 94
    config = json.loads((workdir / 'config.json').read_text())
    assert config['model']['ablations'] == [name] * (name != 'baseline')
    assert config['optimizer']['schedule']['milestones'] == [8.0, 9.0]
    assert config['log']['tensorboard'] is False
  again = run(*words)  # a planned config that is not that of the run would be refused
  assert again.returncode == 0 and again.stderr == ''


@pytest.mark.slow
def test_the_command_lists_what_failed(tmp_path):
  (tmp_path / 'images').mkdir()
  words = ['--config.data.source=folder', f'--config.data.dir={tmp_path / "images"}']
  done = run(*DIGITS, *words, '--seeds=2', '--jobs=2', f'--workdir={tmp_path / "s"}')
  assert done.returncode == 1 and done.stdout == ''
  error, *failed = done.stderr.splitlines()[-3:]
  assert error.startswith('error: 2 of 2 runs failed, see output.log of each; the same command')
  for seed, line in enumerate(failed):
    workdir = tmp_path / 's' / 'baseline' / f'seed{seed}'
    last = (workdir / 'output.log').read_text().splitlines()[-1]
    assert line == f'  {workdir}: exit code 2: {last}' and str(tmp_path / 'images') in last
