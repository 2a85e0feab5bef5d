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

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

try:
  import fcntl  # noqa: F401
except ImportError:
  print('error: this system has no fcntl: use Linux, macOS, or WSL', file=sys.stderr)
  sys.exit(2)

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.runtime.child_processes import signal_on_parent_death

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
    with open(self._logs[0], 'ab+') as shown:
      self._start()
      if self.asked:  # before all had started
        self._send(signal.SIGTERM)
      deadline = None
      while None in (codes := [process.poll() for process in self._processes]):
        _show(shown)
        time.sleep(0.1)
        # Processes that were asked to stop end with 75 while another may still be saving.
        good = {None, DONE, RESUME} if self.asked else {None, DONE}
        if deadline is None and not set(codes) <= good:
          deadline = time.monotonic() + _GRACE
          self._send(signal.SIGTERM)
        elif deadline and time.monotonic() > deadline:
          self._send(signal.SIGKILL)
      _show(shown)
    return codes

  def _send(self, number: int) -> None:
    for process in self._processes:
      process.send_signal(number)

  def _start(self) -> None:
    with socket.socket() as listener:
      listener.bind(('127.0.0.1', 0))
      address = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{listener.getsockname()[1]}'}
    self._processes = []
    for path, environment in zip(self._logs, self._environments, strict=True):
      with open(path, 'ab') as log:
        self._processes.append(
          subprocess.Popen(
            self._command,
            env=os.environ | environment | (address if len(self._logs) > 1 else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches them through `forward` only, once
            preexec_fn=signal_on_parent_death(signal.SIGKILL),
          )
        )


def _show(log) -> None:
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


class _Parser(argparse.ArgumentParser):
  def error(self, message: str):
    raise UserError(f'{message}; see launch/local.py --help')


def _parse(words: list[str]) -> tuple[argparse.Namespace, Path]:
  """This program's flags, and --workdir among those of `main`."""
  parser = _Parser(
    prog='launch/local.py',
    usage='%(prog)s -n PROCESSES [--tries=3] [--devices_per_process=K] -- FLAGS OF main',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('-n', type=int, required=True, help='number of processes')
  parser.add_argument('--tries', type=int, default=3, help='starts without a new checkpoint')
  parser.add_argument(
    '--devices_per_process', type=int, help='GPUs, or virtual CPU devices, of each process'
  )
  parser.add_argument('flags', nargs='+', help='flags of alexnet_jax.main, such as --config=FILE')
  of_main = _Parser(add_help=False, allow_abbrev=False)
  of_main.add_argument('--workdir', '-workdir', required=True)
  options = parser.parse_args(words)
  for name in ('n', 'tries', 'devices_per_process'):
    if (number := getattr(options, name)) is not None and number < 1:
      parser.error(f'argument -{"-" * (name != "n")}{name}: {number}: must be at least 1')
  return options, files.expand(of_main.parse_known_args(options.flags)[0].workdir, '--workdir')


def main(words: list[str]) -> int:
  """Runs the job to its end; returns the exit code."""
  options, workdir = _parse(words)
  environments = _environments(options.n, options.devices_per_process)
  (workdir / 'logs').mkdir(parents=True, exist_ok=True)
  job = Job(options.flags, environments, workdir / 'logs')
  for number in _SIGNALS:
    signal.signal(number, job.forward)
  failures = 0
  while not job.asked:
    before = _newest_checkpoint(workdir)
    codes = job.run()
    if (code := _exit_code(set(codes), job.asked)) is not None:
      return code
    failures = 0 if _newest_checkpoint(workdir) > before else failures + 1
    ends = ', '.join(f'process {index}: {_end(code)}' for index, code in enumerate(codes))
    if failures >= options.tries:
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


def _end(code: int) -> str:
  return signal.Signals(-code).name if code < 0 else f'exit code {code}'


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
