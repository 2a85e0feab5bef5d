"""Sides in processes of their own, which compute only when they are asked to.

What suits one side's memory allocator does not suit the other's, and such settings hold for a whole
process.  A side is an object in a child process; `call` runs one of its methods there and waits, so
that no two sides ever compute at the same time.
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
  """How to start a side.

  Attributes:
    title: what it is called in tables.
    side: 'module:Class' of a `Side`.
    settings: environment variables of its process.
    arguments: of the class, besides those of `start`.
    package, extra: what it needs to be installed, and the extra of this project that has it.
    python: interpreter of its process; '' for this one.
  """

  title: str
  side: str
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  package: str = ''
  extra: str = ''
  python: str = ''

  def start(self, **arguments) -> 'Worker':
    """Starts the process; raises Unavailable where the side cannot work."""
    if self.package and importlib.util.find_spec(self.package) is None:
      raise Unavailable(f"{self.package} is not installed: pip install 'alexnet_jax[{self.extra}]'")
    return Worker(self, self.arguments | arguments)


class Worker:
  """The process of one side; a context manager that ends it."""

  def __init__(self, contestant: Contestant, arguments: dict[str, Any]):
    self.contestant = contestant
    self._connection, theirs = multiprocessing.Pipe()
    with theirs:
      descriptor = theirs.fileno()
      self._process = subprocess.Popen(
        [
          contestant.python or sys.executable,
          '-c',
          f'from {__name__} import serve; serve({descriptor})',
        ],
        env={**os.environ, 'PYTHONPATH': python_path(), **contestant.settings},
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=2,
      )  # what libraries print does not belong in our output
    try:
      self._ask((contestant.side, arguments))
    except BaseException:
      self.close(at_once=True)
      raise

  def call(self, method: str, *arguments) -> Any:
    """Runs a method of the side and returns its result.

    Raises:
      UserError: as the side did; or its process was killed.
      Unavailable: as the side did.
      RuntimeError: the side raised something else.
    """
    return self._ask((method, arguments))

  def _ask(self, request: tuple) -> Any:
    try:
      self._connection.send(request)
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
  """The child's part: makes the side of the first message, then runs its methods till the end."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this
  with Connection(descriptor) as connection:
    side = None
    while True:
      try:
        name, arguments = connection.recv()
      except EOFError:
        return
      try:
        if side is None:
          module, _, kind = name.partition(':')
          side = getattr(importlib.import_module(module), kind)(**arguments)
          reply = None, None
        else:
          reply = getattr(side, name)(*arguments), None
      except (UserError, Unavailable) as error:
        reply = None, error
      except Exception:
        reply = None, RuntimeError(traceback.format_exc())
      connection.send(reply)
