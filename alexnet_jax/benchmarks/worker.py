"""Contestants in processes of their own, which compute only when they are asked to.

The setting of the memory allocator that suits one contestant does not suit another, and holds for a
whole process.  `Worker.call` runs a method of an object in a child process and waits for it, so
that no two contestants ever compute at the same time.
"""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alexnet_jax.benchmarks.contestants import Unavailable
from alexnet_jax.errors import UserError

_GRACE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Contestant:
  """How to start a contestant.

  Attributes:
    title: what it is called in tables.
    workload: 'module:Class', of a `Workload` as a rule.
    settings: environment variables of its process.
    arguments: of the class, besides those of `start`.
    package: what it needs, and `extra`, which installs that.
    python: interpreter of its process; '' for this one.
  """

  title: str
  workload: str
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  package: str = ''
  extra: str = 'peers'
  python: str = ''

  def start(self, **arguments) -> 'Worker':
    """Starts the process; raises Unavailable where it cannot work."""
    if self.package and importlib.util.find_spec(self.package) is None:
      raise Unavailable(f"{self.package} is not installed: pip install 'alexnet_jax[{self.extra}]'")
    return Worker(self, self.arguments | arguments)


class Worker:
  """The process of a contestant; a context manager that ends it."""

  def __init__(self, contestant: Contestant, arguments: dict[str, Any]):
    self.contestant = contestant
    self._connection, theirs = multiprocessing.Pipe()
    with theirs:
      descriptor = theirs.fileno()
      program = f'from {__name__} import serve; serve({descriptor})'
      self._process = subprocess.Popen(
        [contestant.python or sys.executable, '-c', program],
        env={**os.environ, 'PYTHONPATH': python_path(), **contestant.settings},
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what libraries print does not belong in our output
      )
    try:
      self.call(contestant.workload, **arguments)
    except BaseException:
      self.close(at_once=True)
      raise

  def call(self, method: str, *arguments, **named) -> Any:
    """Runs a method of the workload and returns its result.

    Raises:
      UserError: as the method did; or its process was killed.
      Unavailable: as the method did.
      RuntimeError: the method raised something else.
    """
    try:
      self._connection.send((method, arguments, named))
      result, error = self._connection.recv()
    except (EOFError, ConnectionError):
      code = self._process.wait()
      raise UserError(
        f'the process of {self.contestant.title} ended with code {code}, perhaps for want of'
        ' memory: try smaller --batch_sizes, or fewer --peers'
      ) from None
    if error:
      raise error
    return result

  def close(self, at_once: bool = False) -> None:
    """Ends the process, which leaves by itself unless it is busy."""
    self._connection.close()
    try:
      self._process.wait(0 if at_once else _GRACE_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, kind, *exception) -> None:
    self.close(at_once=kind is not None)


def python_path() -> str:
  """$PYTHONPATH with which any interpreter imports this very package."""
  root = str(Path(__file__).parents[2])
  return os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))


def serve(descriptor: int) -> None:
  """The child's part: makes the object of the first message, then runs its methods till the end."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this
  workload = None
  with Connection(descriptor) as connection:
    while True:
      try:
        name, arguments, named = connection.recv()
      except EOFError:
        return
      try:
        if workload is None:
          module, _, kind = name.partition(':')
          workload = getattr(importlib.import_module(module), kind)(**named)
          reply = None, None
        else:
          reply = getattr(workload, name)(*arguments, **named), None
      except (UserError, Unavailable) as error:
        reply = None, error
      except Exception:
        reply = None, RuntimeError(traceback.format_exc())
      connection.send(reply)
