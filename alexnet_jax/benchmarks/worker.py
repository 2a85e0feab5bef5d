"""Contestants in processes of their own, which compute only when they are asked to.

The setting of the memory allocator that suits one contestant does not suit another, and holds for a
whole process.  `Worker.call` runs a method of an object in a child process and waits for it, so
that no two contestants ever compute at the same time.
"""

import dataclasses
import importlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Self

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
    arguments: of the class, besides those given to `Worker`.
    package: what it needs, and `extra`, which installs that.
    python: interpreter of its process.
  """

  title: str
  workload: str
  settings: dict[str, str] = dataclasses.field(default_factory=dict)
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  package: str = ''
  extra: str = 'peers'
  python: str = sys.executable


class Worker:
  """The process of a contestant; a context manager that ends it."""

  def __init__(self, contestant: Contestant, **arguments):
    """Starts it; `arguments` are of the contestant's class.  Raises as `call` does."""
    package = contestant.package
    if package and importlib.util.find_spec(package) is None:
      raise Unavailable(
        f"{package} is not installed: pip install 'alexnet_jax[{contestant.extra}]'"
      )
    self.contestant = contestant
    self._process = subprocess.Popen(
      [contestant.python, '-c', f'from {__name__} import serve; serve()'],
      env={**os.environ, 'PYTHONPATH': python_path(), **contestant.settings},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    try:
      self.call(contestant.workload, **contestant.arguments | arguments)
    except BaseException:
      self.close(grace_seconds=0)
      raise

  def call(self, method: str, *arguments, **named) -> Any:
    """Runs a method of the workload and returns its result.

    Raises:
      UserError: as the method did; or its process was killed.
      Unavailable: as the method did.
      RuntimeError: the method raised something else.
    """
    try:
      pickle.dump((method, arguments, named), self._process.stdin)
      self._process.stdin.flush()
      result, error = pickle.load(self._process.stdout)
    except (EOFError, ConnectionError):
      code = self._process.wait()
      raise UserError(
        f'the process of {self.contestant.title} ended with code {code}, perhaps for want of'
        ' memory: try smaller --batch_sizes, or fewer --peers'
      ) from None
    if error:
      raise error
    return result

  def close(self, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Ends the process, which leaves by itself unless it is busy."""
    try:
      self._process.communicate(timeout=grace_seconds)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.communicate()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind, *exception) -> None:
    self.close(0 if kind else _GRACE_SECONDS)


def python_path() -> str:
  """$PYTHONPATH with which any interpreter imports this very package."""
  root = str(Path(__file__).parents[2])
  return os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))


def serve() -> None:
  """The child's part: makes the object of the first message, then runs its methods till the end."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this
  replies = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what libraries print does not belong in our output
  workload: Any = None
  while True:
    try:
      name, arguments, named = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    result, error = None, None
    try:
      if workload is None:
        module, _, kind = name.partition(':')
        workload = getattr(importlib.import_module(module), kind)(**named)
      else:
        result = getattr(workload, name)(*arguments, **named)
    except (UserError, Unavailable) as known:
      error = known
    except Exception:
      error = RuntimeError(traceback.format_exc())
    pickle.dump((result, error), replies)
    replies.flush()
