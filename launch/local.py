#!/usr/bin/env python3
"""Trains in several processes on this machine, and starts them again when one dies.

  python launch/local.py -n 2 -- --config=configs/digits.py --workdir=runs/digits-2
  python launch/local.py -n 1 -- --config=configs/imagenet.py --workdir=runs/imagenet

What follows `--` goes to each `python -m alexnet_jax.main`; --workdir is required. Each process
appends to `<workdir>/logs/process-<i>.log`; what process 0 writes is shown as well. SIGTERM, SIGINT
and SIGUSR1 go to all processes, which save and end.

If a process crashes, is killed, or ends with 75 unasked, all are ended and restarted from the last
checkpoint, after 1, 2, 4, ... at most 60 seconds, until `--tries` starts in a row have left no new
checkpoint. On Linux the processes die with this program, however it ends.

Exit codes: 0 done, 1 given up, 2 bad input, 3 diverged, 75 asked to stop and saved.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.child_processes import describe_exit, start_child

_PROCESSES = flags.DEFINE_integer('n', None, 'Number of processes.', lower_bound=1)
_TRIES = flags.DEFINE_integer('tries', 3, 'Starts without a new checkpoint.', lower_bound=1)
_DEVICES = flags.DEFINE_integer(
  'devices_per_process', None, 'GPUs, or virtual CPU devices, of each process.', lower_bound=1
)

DONE, GIVEN_UP, BAD_INPUT, DIVERGED, RESUME = 0, 1, 2, 3, 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Exit codes of a process that was asked to stop before there was anything to save; 130: Ctrl-C.
_EARLY = {130, *(-number for number in _SIGNALS)}
_GRACE = 15.0  # seconds from SIGTERM to SIGKILL for processes that lost a peer


class Job:
  """The processes of a job.

  Attributes:
    asked: whether a signal asked to stop.
  """

  def __init__(self, words: list[str], environments: list[dict[str, str]], logs: Path):
    """Args: flags of `main`, environment variables of each process, folder of their logs."""
    self._command = [sys.executable, '-m', 'alexnet_jax.main', *words]
    self._environments = environments
    self._logs = [logs / f'process-{index}.log' for index, _ in enumerate(environments)]
    self._processes: list[subprocess.Popen] = []
    self.asked = False

  def forward(self, number: int, frame=None) -> None:
    """A signal handler: sends the signal to all processes."""
    del frame
    self.asked = True
    self._send(number)

  def run(self) -> list[int]:
    """Starts all processes and waits for them to end; returns their exit codes."""
    with open(self._logs[0], 'ab+') as log:
      self._start()
      if self.asked:  # before all had started
        self._send(signal.SIGTERM)
      deadline = None
      while None in (codes := [process.poll() for process in self._processes]):
        _copy_log(log)
        time.sleep(0.1)
        # Processes that were asked to stop end with 75 while another may still be saving.
        good = {None, DONE, RESUME} if self.asked else {None, DONE}
        if deadline is None and not set(codes) <= good:
          deadline = time.monotonic() + _GRACE
          self._send(signal.SIGTERM)
        elif deadline and time.monotonic() > deadline:
          self._send(signal.SIGKILL)
      _copy_log(log)
    return codes

  def _send(self, number: int) -> None:
    for process in self._processes:
      process.send_signal(number)

  def _start(self) -> None:
    address = {}
    if len(self._logs) > 1:
      with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        address['JAX_COORDINATOR_ADDRESS'] = f'127.0.0.1:{listener.getsockname()[1]}'
    self._processes = [
      start_child(self._command, log, environment | address, signal.SIGKILL)
      for log, environment in zip(self._logs, self._environments, strict=True)
    ]


def _copy_log(log) -> None:
  sys.stdout.buffer.write(log.read())
  sys.stdout.flush()


def _environments(count: int, devices: int | None) -> list[dict[str, str]]:
  """Environment variables of each process: its number and its devices."""
  gpus = _gpus()
  share = devices or max(1, len(gpus) // count)
  if gpus and count * share > len(gpus):
    raise UserError(
      f'{count} processes with {share} GPUs each: this machine has {len(gpus)}; lower -n or'
      ' --devices_per_process, or set JAX_PLATFORMS=cpu'
    )
  environments = []
  for index in range(count):
    environment = {'PYTHONUNBUFFERED': '1'}
    if count > 1:
      environment |= {'JAX_NUM_PROCESSES': str(count), 'JAX_PROCESS_ID': str(index)}
    if gpus:
      environment['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[index * share : (index + 1) * share])
    elif devices:
      flag = f'--xla_force_host_platform_device_count={devices}'
      environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
    environments.append(environment)
  return environments


def _gpus() -> list[str]:
  """Numbers of the GPUs that JAX would use."""
  if 'cuda' not in os.environ.get('JAX_PLATFORMS', 'cuda') or not shutil.which('nvidia-smi'):
    return []
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    return [gpu for gpu in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if gpu]
  listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
  return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]


def _newest_checkpoint(workdir: Path) -> int:
  from alexnet_jax.run.folder import RunFolder  # it imports fcntl, of which `cli.run` tells

  steps = [path.name for path in (RunFolder(workdir).checkpoints / 'last').glob('*')]
  return max((int(step) for step in steps if step.isdecimal()), default=-1)


def _exit_code(codes: set[int], asked: bool) -> int | None:
  """The exit code of the job, or None to restart it."""
  if final := codes & {BAD_INPUT, DIVERGED}:
    return min(final)
  if codes == {DONE}:
    return DONE
  if asked:
    return RESUME if codes <= {DONE, RESUME} | _EARLY else GIVEN_UP
  return None


def _workdir(words: list[str]) -> Path:
  """--workdir among the flags of `main`."""
  given = [word.partition('=')[2] for word in words if word.startswith('--workdir=')]
  if not given:
    raise UserError('--workdir=FOLDER is missing: give it after --, with the flags of main')
  return files.expand(given[-1], '--workdir')


def main(words: list[str]) -> int:
  """Runs the job to its end; returns the exit code.

  Args:
    words: flags of `alexnet_jax.main`.
  """
  cli.refuse_config('flags of main stand after --')
  if not _PROCESSES.value or not words:
    raise UserError('give -n PROCESSES, and after -- the flags of main; see --help')
  workdir = _workdir(words)
  environments = _environments(_PROCESSES.value, _DEVICES.value)
  (workdir / 'logs').mkdir(parents=True, exist_ok=True)
  job = Job(words, environments, workdir / 'logs')
  for number in _SIGNALS:
    signal.signal(number, job.forward)
  failures = 0
  while not job.asked:
    before = _newest_checkpoint(workdir)
    codes = job.run()
    if (code := _exit_code(set(codes), job.asked)) is not None:
      return code
    failures = 0 if _newest_checkpoint(workdir) > before else failures + 1
    ends = ', '.join(f'process {index}: {describe_exit(code)}' for index, code in enumerate(codes))
    if failures >= _TRIES.value:
      _print(f'{ends}; no new checkpoint in {failures} starts, giving up: see {workdir}/logs')
      return GIVEN_UP
    seconds = min(60, 2 ** max(0, failures - 1))
    _print(f'{ends}; all start again in {seconds} s')
    end = time.monotonic() + seconds
    while time.monotonic() < end and not job.asked:
      time.sleep(0.1)
  return RESUME


def _print(message: str) -> None:
  print(f'local: {message}', file=sys.stderr, flush=True)


if __name__ == '__main__':
  split = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  sys.argv, words = sys.argv[:split], sys.argv[split + 1 :]
  sys.exit(cli.run(lambda: sys.exit(main(words))))
