"""Runs the members of a sweep as child processes, as many at a time as asked.

What may go wrong, and what then:

* A member fails: that is recorded and shown, and the others go on.
* The sweep is interrupted (SIGINT, SIGTERM, SIGHUP): members save and stop; the same command goes
  on.  A second SIGINT kills them.
* The sweep is killed: on Linux its members are told to save and stop as well.  In any case each
  holds a lock on its folder for as long as it lives, so that a new sweep waits for it instead of
  running it twice.
"""

import ctypes
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from alexnet_jax import files
from alexnet_jax.errors import Interrupted
from alexnet_jax.sweep.members import Member

LOG, LOCK = 'output.log', '.sweep.lock'
WAITING, RUNNING, ELSEWHERE, DONE, FAILED, STOPPED = (
  'waiting',
  'running',
  'elsewhere',
  'done',
  'failed',
  'stopped',
)
_SET_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h


@dataclasses.dataclass
class State:
  """Where a member is; `code` and `error` of its last process, once that has ended."""

  status: str = WAITING
  code: int | None = None
  error: str = ''


class Runner:
  """Runs members to their end; `states` says where each is."""

  def __init__(self, members: Sequence[Member], jobs: int, record: Path, command: str):
    """Nothing starts yet.

    Args:
      members: in the order in which to run them.
      jobs: how many at a time.
      record: JSON file that follows the states.
      command: how the user started the sweep, for the record.
    """
    self.members = members
    self.states = {member.name: State() for member in members}
    self._jobs = jobs
    self._record = record
    self._command = command
    self._children: dict[str, subprocess.Popen] = {}
    self._told: set[tuple[str, signal.Signals]] = set()
    self._recorded: dict | None = None

  def run(self, show: Callable[[], None], seconds: float = 0.5) -> None:
    """Runs until every member is done or has failed.

    Args:
      show: called after each look at the children.
      seconds: between looks.

    Raises:
      Interrupted: by a signal; all members have stopped.
    """
    with _Signals() as signals:
      while True:
        self._reap(stopping=bool(signals.received))
        for member in self.members:
          if not signals.received:
            self._advance(member)
        if signals.received:
          self._tell(signal.SIGKILL if signals.again else signal.SIGTERM)
        self._write()
        show()
        left = [s for s in self.states.values() if s.status in (WAITING, ELSEWHERE)]
        if not self._children and (signals.received or not left):
          break
        time.sleep(seconds)
    if signals.received:
      done = sum(state.status == DONE for state in self.states.values())
      raise Interrupted(
        f'stopped by {signals.received} with {done} of {len(self.members)} members done; the others'
        ' have saved what they had: the same command goes on from there'
      )

  def _advance(self, member: Member) -> None:
    """Starts a member if it is its turn."""
    state = self.states[member.name]
    if state.status not in (WAITING, ELSEWHERE):
      return
    if member.finished:
      state.status = DONE
    elif len(self._children) < self._jobs:
      member.workdir.mkdir(parents=True, exist_ok=True)
      with open(member.workdir / LOCK, 'w') as lock:
        try:
          fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          state.status = ELSEWHERE
          return
        if member.finished:  # in the meantime, by whoever held the lock
          state.status = DONE
          return
        self._children[member.name] = _start(member, self._jobs, lock.fileno())
        state.status = RUNNING

  def _tell(self, number: signal.Signals) -> None:
    """Sends each child a signal once: a second SIGTERM could meet one that is done with saving."""
    for name, child in self._children.items():
      if (name, number) not in self._told:
        self._told.add((name, number))
        child.send_signal(number)

  def _reap(self, stopping: bool) -> None:
    """Notes how children have ended; `stopping`: because they were told to."""
    for member in self.members:
      child = self._children.get(member.name)
      if child is None or child.poll() is None:
        continue
      del self._children[member.name]
      state, code = self.states[member.name], child.returncode
      if code == 0 and member.finished:
        state.status, state.code = DONE, 0
        continue
      state.code, state.error = code, _last_line(member.workdir / LOG)
      if code < 0:
        state.error = f'killed by {signal.Signals(-code).name}'
      # One that was told before it could listen to signals has nothing to save yet.
      stopped = code == Interrupted.exit_code or stopping
      state.status = STOPPED if stopped else FAILED

  def _write(self) -> None:
    states = {name: dataclasses.asdict(state) for name, state in self.states.items()}
    if states != self._recorded:
      self._recorded = states
      files.write_json(self._record, {'command': self._command, 'members': states})


def _start(member: Member, jobs: int, lock: int) -> subprocess.Popen:
  """A child that writes to the member's log and keeps the lock open."""
  environment = dict(os.environ)
  if jobs > 1:  # JAX takes three quarters of a GPU's memory unless told otherwise
    environment.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', f'{0.9 / jobs:.2f}')
  with open(member.workdir / LOG, 'ab') as log:
    return subprocess.Popen(
      member.command(sys.executable),
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment,
      pass_fds=(lock,),
      process_group=0,  # Ctrl-C in the terminal is for the sweep, which tells its members
      preexec_fn=_stop_with_parent(),
    )


def _stop_with_parent() -> Callable[[], None] | None:
  """What makes a child get SIGTERM, on which it saves, when its parent dies; Linux only."""
  if sys.platform != 'linux':
    return None
  prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

  def prepare():
    prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that
      os._exit(Interrupted.exit_code)

  return prepare


def _last_line(path: Path) -> str:
  try:
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
  except OSError:
    return ''
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


class _Signals:
  """Notes requests to stop.

  Attributes:
    received: the signal's name once one has come, else ''.
    again: whether SIGINT has come after that.
  """

  _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

  def __init__(self):
    self.received = ''
    self.again = False

  def __enter__(self) -> Self:
    self._previous = {number: signal.signal(number, self._note) for number in self._NUMBERS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame) -> None:
    del frame
    self.again = bool(self.received) and number == signal.SIGINT
    self.received = self.received or signal.Signals(number).name
