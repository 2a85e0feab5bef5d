"""Kills a training run again and again, and compares its end with that of an undisturbed one.

  python tests/kills.py --kills=50 --seed=0

Every kill is SIGKILL at a moment of one of the kinds below, drawn at random; the same command then
goes on.  A run that got to its end is compared with the undisturbed run: all bits of the last
checkpoint, and the loss of every step, which shows that each step saw the examples it should.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

COMMAND = (
  '--config=configs/digits.py',
  '--config.epochs=2',
  '--config.data.train_examples=300',
  '--config.checkpoint.every_epochs=0.2',
  '--config.checkpoint.max_to_keep=1',
  '--config.eval.every_epochs=0.5',
  '--config.log.every_steps=1',
)

# Where the process kills itself: a module, a function of it, and at which part of its work.
MOMENTS = {
  'compiling': ('alexnet_jax.train.loop', 'make_program', 'after'),
  'first and later steps': ('alexnet_jax.train.throughput', 'Throughput.add', 'before'),
  'writing a metrics line': ('alexnet_jax.run.metrics', 'MetricWriter.write', 'before'),
  'before a save': ('alexnet_jax.run.checkpoint', 'Checkpoints.save', 'before'),
  'just after a save began': ('alexnet_jax.run.checkpoint', 'Checkpoints.save', 'after'),
  'arrays being written': ('alexnet_jax.run.checkpoint_files', '_leaf_record', 'before'),
  'saved, not yet named': ('alexnet_jax.run.checkpoint', '_publish', 'before'),
  'named, old ones not yet deleted': ('alexnet_jax.run.checkpoint', '_publish', 'after'),
  'deleting an old step': ('shutil', 'rmtree', 'halfway'),
  'evaluating': ('alexnet_jax.train.processes', 'gather', 'before'),
  'drawing figures': ('alexnet_jax.results.figures', 'filter_grid', 'before'),
  'replacing a file': ('os', 'replace', 'before'),
}

# Runs the trainer with one function replaced by one that ends the process at its n-th call.
VICTIM = """
import importlib, os, pathlib, runpy, signal, sys
module, path, place, count = sys.argv[1:5]
sys.argv[1:5] = []
owner = importlib.import_module(module)
*holders, name = path.split('.')
for holder in holders:
  owner = getattr(owner, holder)
real, calls = getattr(owner, name), 0

def die(*arguments, **named):
  global calls
  calls += 1
  last = calls == int(count)
  if last and place == 'halfway':
    files = [file for file in pathlib.Path(arguments[0]).rglob('*') if file.is_file()]
    for file in files[: len(files) // 2 + 1]:
      file.unlink()
  if last and place != 'after':
    os.kill(os.getpid(), signal.SIGKILL)
  result = real(*arguments, **named)
  if last:
    os.kill(os.getpid(), signal.SIGKILL)
  return result

setattr(owner, name, die)
runpy.run_module('alexnet_jax.main', run_name='__main__', alter_sys=True)
"""


def train(workdir, *victim, seconds=None):
  """Runs to the end, to the moment of death, or for so many seconds; returns the exit code."""
  program = ('-c', VICTIM, *victim) if victim else ('-m', 'alexnet_jax.main')
  workdir.parent.mkdir(parents=True, exist_ok=True)
  with open(workdir.with_suffix('.log'), 'a') as log:
    process = subprocess.Popen(
      [sys.executable, *program, *COMMAND, f'--workdir={workdir}'],
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
      stdout=log,
      stderr=log,
    )
    try:
      return process.wait(seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      return process.wait()


def fingerprint(workdir):
  """What must be equal: CRC32 of every leaf of the last checkpoint, and the loss of every step."""
  newest = max((workdir / 'checkpoints/last').glob('[0-9]*'), key=lambda path: int(path.name))
  record = json.loads((newest / 'meta.json').read_text())['checkpoint']
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  losses = [(line['step'], line['train/loss']) for line in lines if 'train/loss' in line]
  return newest.name, record['leaves'], losses


def kill_again_and_again(folder, kills, seed, say=print):
  """Does so many kills.

  Returns:
    How many there were of each kind, how many runs ended alike, and the seconds that a kill cost on
    average: for the next start and for the steps since the last save.

  Raises:
    AssertionError: a run could not go on, or ended in another way than the undisturbed one.
  """
  draw = random.Random(seed)
  began = time.monotonic()
  assert train(folder / 'undisturbed') == 0, (folder / 'undisturbed.log').read_text()
  alone = time.monotonic() - began
  expected = fingerprint(folder / 'undisturbed')
  assert [step for step, _ in expected[2]] == list(range(1, 11))
  done, ended, moments = collections.Counter(), 0, []
  began = time.monotonic()
  while sum(done.values()) < kills or moments:
    workdir = folder / f'victim{ended}'
    if not moments and sum(done.values()) < kills:
      moments = draw.sample([*MOMENTS, 'any time'], min(5, kills - sum(done.values())))
    if moments:
      moment = moments.pop()
      if moment == 'any time':
        code = train(workdir, seconds=draw.uniform(0, alone))
      else:
        module, name, place = MOMENTS[moment]
        code = train(workdir, module, name, place, str(draw.randint(1, 6)))
      assert code in (0, -signal.SIGKILL), f'{moment}: {workdir.with_suffix(".log").read_text()}'
      done[moment] += code != 0
      say(f'{sum(done.values())}/{kills}  {moment}: {"killed" if code else "ended before that"}')
      if moments and code:
        continue
    assert train(workdir) == 0, workdir.with_suffix('.log').read_text()
    assert fingerprint(workdir) == expected, f'{workdir} ended in another way'
    shutil.rmtree(workdir)
    ended, moments = ended + 1, []
    say(f'run {ended}: the end of the undisturbed one, bit for bit')
  return done, ended, (time.monotonic() - began - ended * alone) / sum(done.values())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='kills-') as folder:
    done, ended, lost = kill_again_and_again(pathlib.Path(folder), options.kills, options.seed)
  print(*(f'{times} times {moment}' for moment, times in done.most_common()), sep='\n')
  print(
    f'{sum(done.values())} kills, {ended} runs, all equal to the undisturbed one in every bit;'
    f' a kill cost {lost:.1f} s'
  )


if __name__ == '__main__':
  main()
