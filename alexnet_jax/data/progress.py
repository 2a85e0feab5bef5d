"""How long work tells the user about itself: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import rich.console
import rich.progress
import rich.text

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
  """Takes lines, and counts work done."""

  def say(self, line: str) -> None: ...

  def count(
    self, title: str, total: int, done: int = 0
  ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """A context that yields `advance(n)`, to be called when `n` more of `total` are done."""
    ...


class Silent:
  """Says nothing."""

  def say(self, line: str) -> None:
    del line

  @contextlib.contextmanager
  def count(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    del title, total, done
    yield lambda n: None


class Rate(rich.progress.ProgressColumn):
  """How many a second."""

  def render(self, task: rich.progress.Task) -> rich.text.Text:
    return rich.text.Text(f'{task.speed or 0:,.0f}/s')


class Console:
  """Writes to a rich console; by default to standard error."""

  def __init__(self, console: rich.console.Console | None = None):
    self._console = console or rich.console.Console(stderr=True)

  def say(self, line: str) -> None:
    self._console.print(line, markup=False, highlight=False, soft_wrap=True)

  @contextlib.contextmanager
  def count(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    if not self._console.is_terminal:
      yield self._lines(title, total, done)
      return
    columns = (
      rich.progress.TextColumn('{task.description}', markup=False),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      Rate(),
      rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=self._console) as bar:
      task = bar.add_task(title, total=total, completed=done)
      yield lambda n: bar.advance(task, n)

  def _lines(self, title: str, total: int, done: int) -> Callable[[int], None]:
    began = spoken = time.monotonic()
    already = done

    def advance(n: int) -> None:
      nonlocal done, spoken
      done += n
      now = time.monotonic()
      if now - spoken >= SECONDS_BETWEEN_LINES or done == total:
        spoken = now
        rate = (done - already) / max(now - began, 1e-9)
        left = datetime.timedelta(seconds=round((total - done) / max(rate, 1e-9)))
        self.say(f'{title}: {done:,} of {total:,}, {rate:,.0f} per second, {left} left')

    return advance
