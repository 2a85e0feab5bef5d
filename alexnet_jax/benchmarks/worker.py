"""Runs contestants in processes of their own, one at a time.

Processes, because settings of the memory allocator hold for a whole process, and contestants need
different ones.  `Worker.call` runs a method of an object in a child process and waits for it, so
that no two contestants compute at the same time.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alexnet_jax.errors import UserError


class Unavailable(Exception):
  """A contestant cannot run here; the message is one line with the reason."""


@dataclasses.dataclass(frozen=True)
class Contestant:
  """How to start a contestant.

  Attributes:
    title: its name in tables.
    workload: 'module:Class', usually of a `Workload`.
    settings: environment variables of its process.
    python: interpreter of its process.
    advice: what to do if its process is killed.
  """

  title: str
  workload: str
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  python: str = sys.executable
  advice: str = 'try smaller --batch_sizes, or fewer --peers'


class Worker:
  """The running process of a contestant; `start_worker` makes one."""

  def __init__(self, contestant: Contestant, process: subprocess.Popen, connection: Connection):
    self.contestant = contestant
    self.process = process
    self._connection = connection

  def call(self, method: str, *arguments, **named) -> Any:
    """Runs a method of the workload and returns its result.

    Raises:
      UserError: as the method did; or its process was killed.
      Unavailable: as the method did; or a package is not installed.
      RuntimeError: the method raised something else.
    """
    self.start(method, *arguments, **named)
    return self.result()

  def start(self, method: str, *arguments, **named) -> None:
    """Begins a call; `result` waits for its end."""
    with contextlib.suppress(ConnectionError):  # its process has ended: `result` says so
      self._connection.send((method, arguments, named))

  def ready(self, seconds: float) -> bool:
    """Waits at most this long; returns whether `result` would return at once."""
    return self._connection.poll(seconds)

  def result(self) -> Any:
    """The result of the call that `start` began; raises like `call`."""
    try:
      reply = self._connection.recv()
    except (EOFError, ConnectionError):
      raise UserError(
        f'the process of {self.contestant.title} ended with code {self.process.wait()}, perhaps'
        f' for lack of memory: {self.contestant.advice}'
      ) from None
    if isinstance(reply, Exception):
      raise reply
    return reply


@contextlib.contextmanager
def start_worker(contestant: Contestant, **arguments) -> Iterator[Worker]:
  """Starts a contestant, whose class takes `arguments`; raises as `Worker.call` does."""
  path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')])
  ours, theirs = multiprocessing.Pipe()
  try:
    process = subprocess.Popen(
      [contestant.python, '-c', f'from {__name__} import serve; serve({theirs.fileno()})'],
      env=os.environ | {'PYTHONPATH': path} | contestant.settings,
      stdin=subprocess.DEVNULL,
      stdout=2,  # what libraries print does not belong in our output
      pass_fds=[theirs.fileno()],
    )
  except OSError as error:
    raise UserError(
      f'{contestant.python} cannot be run ({error.strerror}): give the path of a Python'
    ) from None
  theirs.close()
  try:
    worker = Worker(contestant, process, ours)
    worker.call(contestant.workload, **arguments)
    yield worker
  finally:
    process.kill()
    process.wait()


def serve(descriptor: int) -> None:
  """Runs in the child: creates the object of the first message, then runs methods of it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this
  connection, workload = Connection(descriptor), None
  with contextlib.suppress(EOFError):  # the parent has ended
    while True:
      name, arguments, named = connection.recv()
      reply: Any = None
      try:
        if workload is None:
          workload = pkgutil.resolve_name(name)(**named)
        else:
          reply = getattr(workload, name)(*arguments, **named)
      except ModuleNotFoundError as error:
        reply = Unavailable(f'{error.name} is not installed: pip install {error.name}')
      except (UserError, Unavailable) as known:
        reply = known
      except Exception:
        reply = RuntimeError(traceback.format_exc())
      connection.send(reply)
