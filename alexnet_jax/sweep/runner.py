"""Runs of a sweep as child processes, several at a time.

A run that was interrupted is resumed by its own command.
"""

import concurrent.futures
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from subprocess import Popen

from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.run.folder import RunFolder, lock_workdir, read_results
from alexnet_jax.runtime.child_processes import describe_exit, start_child
from alexnet_jax.sweep.runs import PlannedRun

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MEMORY = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
_SAVING = 60.0  # seconds to wait for a run of a killed sweep that still saves


def run_all(runs: Sequence[PlannedRun], jobs: int) -> dict[str, str]:
  """Runs those that are not finished; a failed run does not stop the others.

  SIGINT, SIGTERM and SIGHUP make the running ones save and end; a second SIGINT kills them.  On
  Linux they also save and end when this process is killed.

  Args:
    runs: in the order in which to start them.
    jobs: how many at a time.

  Returns:
    {name of a failed run: reason}.

  Raises:
    Interrupted: by a signal; all processes have ended.
  """
  children = _Children(jobs)
  previous = {number: signal.signal(number, children.stop) for number in _SIGNALS}
  try:
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      reasons = list(pool.map(children.run, runs))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
  if children.stopped_by:
    raise Interrupted(
      f'stopped by {children.stopped_by} with {sum(run.finished for run in runs)} of {len(runs)}'
      ' runs done; the same command resumes them'
    )
  return {run.name: reason for run, reason in zip(runs, reasons, strict=True) if reason}


class _Children:
  """The processes that are running.

  Attributes:
    stopped_by: name of the signal that asked to stop, or ''.
  """

  def __init__(self, jobs: int):
    self.stopped_by = ''
    self._jobs = jobs
    self._processes: set[Popen] = set()
    self._lock = threading.RLock()  # the handler of a signal can interrupt that of another

  def stop(self, number: int, frame) -> None:
    """A signal handler."""
    del frame
    with self._lock:
      if not self.stopped_by:
        self.stopped_by = signal.Signals(number).name
        self._send(signal.SIGTERM)
      elif number == signal.SIGINT:
        self._send(signal.SIGKILL)

  def run(self, run: PlannedRun) -> str:
    """Runs one to its end, unless it is finished; returns the reason of a failure, else ''."""
    try:
      if not run.finished:
        self._wait_for_folder(run)
      with self._lock:  # no signal before the process is in the set
        if run.finished or self.stopped_by:
          return ''
        process = _start(run, self._jobs)
        self._processes.add(process)
    except OSError as error:
      return f'{run.workdir} cannot be written ({error.strerror})'
    _log(run, 'started')
    code = process.wait()
    with self._lock:
      self._processes.remove(process)
    results = read_results(run.workdir)
    if code == 0 and results is not None:
      top1 = results.get('eval/top1_error')
      _log(run, 'done' if top1 is None else f'done, top-1 error {100 * top1:.2f} %')
      return ''
    reason = ': '.join(filter(None, (describe_exit(code), _last_line(run))))
    _log(run, reason)
    return reason

  def _send(self, number: signal.Signals) -> None:
    for process in self._processes:
      process.send_signal(number)

  def _wait_for_folder(self, run: PlannedRun) -> None:
    """Waits while a run of a killed sweep still saves there; after `_SAVING` ours will fail."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + _SAVING
    while not self.stopped_by and time.monotonic() < end:
      try:
        with lock_workdir(run.workdir):
          return
      except UserError:
        time.sleep(0.2)


def _start(run: PlannedRun, jobs: int) -> Popen:
  environment = {}
  if jobs > 1:  # JAX takes three quarters of a GPU's memory unless told otherwise
    environment[_MEMORY] = os.environ.get(_MEMORY, f'{0.9 / jobs:.2f}')
  log = RunFolder(run.workdir).output
  return start_child(run.command(sys.executable), log, environment, signal.SIGTERM)


def _log(run: PlannedRun, what: str) -> None:
  sys.stderr.write(f'{time.strftime("%H:%M:%S")}  {run.name}  {what}\n')
  sys.stderr.flush()


def _last_line(run: PlannedRun) -> str:
  text = (RunFolder(run.workdir).output).read_text(encoding='utf-8', errors='replace')
  return text.rstrip().rpartition('\n')[2].strip()
