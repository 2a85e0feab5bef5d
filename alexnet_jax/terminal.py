"""Console output: lines, progress bars, tables, numbers with units, and spelling suggestions."""

import contextlib
import difflib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Self


class Console:
  """Messages and progress: with a bar on a terminal, plain lines elsewhere.

  To be used in a `with` block, which closes the log and shows the terminal's cursor again.
  """

  def __init__(self, *, log: str | os.PathLike | None = None, quiet: bool = False):
    """Writes to stderr unless `quiet`, and lines with date and time to the file `log`."""
    import rich.console

    self._log = log and open(log, 'a', encoding='utf-8', errors='backslashreplace', buffering=1)  # noqa: SIM115
    self._terminal = sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'
    self._console = rich.console.Console(stderr=True, quiet=quiet, force_terminal=self._terminal)
    self._bar: Any = None  # a rich.progress.Progress while there is progress on a terminal

  def message(self, text: str) -> None:
    """Writes `text`, of one line or more; above the bar if there is one."""
    self._record(text)
    with self._ignore_lost_terminal():
      self._console.out(text, highlight=False)

  def progress(self, line: str, done: int, total: int) -> None:
    """Writes `line`; on a terminal in place of the line before, with a bar of `done / total`."""
    self._record(line)
    self._show(line, done, total)

  @contextlib.contextmanager
  def count(
    self, title: str, total: int | None = None, done: int = 0
  ) -> Iterator[Callable[[int], None]]:
    """Shows a count with its speed, as a bar or a line a second, after a minute one in 30 seconds.

    Args:
      title: What is counted.
      total: How many there are; None if that is not known.
      done: How many of them were done before.

    Yields:
      A function to be called with the number of those that have just been done.
    """
    pace, began = Pace(), time.monotonic()
    shown = began
    pace.rate(done)

    def advance(n: int) -> None:
      nonlocal done, shown
      done, now = done + n, time.monotonic()
      pause = 0.1 if self._terminal else 1.0 if now - began < 60 else 30.0
      if now - shown >= pause or (done == total and n):
        rate, shown = pace.rate(done), now
        line = f'{title}: {done:,}' if total is None else f'{title}: {done:,} of {total:,}'
        line += f', {rate:,.0f} per second' if rate else ''
        line += f', {duration((total - done) / rate)} left' if rate and total else ''
        self._show(line, done, total)

    if self._terminal and total:
      self._show(title, done, total)
    try:
      yield advance
    finally:
      self._end_bar()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    """Leaves the last line on the terminal and closes the log."""
    self._end_bar()
    if self._log:
      self._log.close()

  def _show(self, line: str, done: int, total: int | None) -> None:
    with self._ignore_lost_terminal():
      if self._terminal:
        self._bar = self._bar or _bar(self._console, total)
        self._bar.update(self._bar.task_ids[0], completed=done, description=line, refresh=True)
      else:
        self._console.out(line, highlight=False)

  @contextlib.contextmanager
  def _ignore_lost_terminal(self) -> Iterator[None]:
    try:
      yield
    except OSError:  # the terminal is gone; the log goes on
      self._bar, self._console.quiet = None, True

  def _end_bar(self) -> None:
    bar, self._bar = self._bar, None
    if bar:
      with self._ignore_lost_terminal():
        bar.stop()

  def _record(self, text: str) -> None:
    if self._log:
      now = time.strftime('%Y-%m-%d %H:%M:%S')
      self._log.write(''.join(f'{now}  {line}'.rstrip() + '\n' for line in text.split('\n')))


def _bar(console, total: int | None):
  """A started rich.progress.Progress: a bar with text at its right, refreshed only on `update`."""
  import rich.progress
  import rich.table

  text = rich.progress.TextColumn(
    '{task.description}', markup=False, table_column=rich.table.Column(ratio=1)
  )
  bar = rich.progress.Progress(
    rich.progress.BarColumn(20),
    text,
    console=console,
    auto_refresh=False,
    expand=True,
    redirect_stdout=sys.stdout.isatty(),  # a redirected output belongs in its file
  )
  bar.add_task('', total=total)
  bar.start()
  return bar


class Pace:
  """The mean speed since the first call."""

  def __init__(self) -> None:
    self._first: tuple[float, int] | None = None

  def rate(self, done: int) -> float | None:
    """How many a second; None while nothing has been done since the first call."""
    now = time.monotonic()
    began, first = self._first = self._first or (now, done)
    return (done - first) / (now - began) if done > first and now > began else None


def shortened(text: str, most: int) -> str:
  """Shortens a text to `most` columns of a terminal, with an ellipsis at its end."""
  from rich.text import Text

  short = Text(text)
  short.truncate(most, overflow='ellipsis')
  return short.plain


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
  """Formats a table as lines; the columns numbered in `left` are aligned to the left."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if column in left else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def si(value: float, unit: str) -> str:
  """Formats a number with an SI prefix: `si(243_860_896, 'B')` is '244 MB'."""
  prefixes = ['', 'k', 'M', 'G', 'T', 'P']
  while abs(value) >= 999.5 and len(prefixes) > 1:
    value /= 1000
    del prefixes[0]
  return f'{value:.3g} {prefixes[0]}{unit}'


def duration(seconds: float) -> str:
  """Formats seconds: 42s, 12m05s, 3h12m, 6d03h."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02}s'
  minutes = round(seconds / 60)
  if minutes < 24 * 60:
    return f'{minutes // 60}h{minutes % 60:02}m'
  hours = round(seconds / 3600)
  return f'{hours // 24}d{hours % 24:02}h'


def did_you_mean(word: str, known: Collection[str]) -> str:
  """Suggests a known name for a misspelled one: 'did you mean X?', or '' if none is like it.

  Initials come first: `lr` and `optimizer.lr` suggest `optimizer.learning_rate`.
  """
  section, _, name = word.rpartition('.')
  same_initials = [
    other
    for other in known
    if other.startswith(section)
    and ''.join(part[:1] for part in other.rpartition('.')[2].split('_')) == name
  ]
  near = same_initials or difflib.get_close_matches(word, known, 1, 0.65)
  return f'did you mean {near[0]}?' if near else ''
