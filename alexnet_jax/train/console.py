"""What a run says while it goes on: one line of progress, and the table at its end."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self, TextIO


class Console:
  """Shows progress: a bar and a line on a terminal, plain lines elsewhere, all of it in a log.

  The line, here broken in two, reads
  `epoch 12.4/90  step 15,500/112,500  loss 3.21  val 51.2/26.9`
  `  8,140 img/s  (data 0.4%)  ETA 3h12m`
  where `val` is the top-1 / top-5 error in percent of the last evaluation of this process.

  Use it in a `with` block, or `close` it: a live terminal hides its cursor.
  """

  def __init__(
    self,
    total_steps: int,
    epochs: float,
    start_step: int = 0,
    *,
    log: str | os.PathLike | None = None,
    quiet: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the bar and opens the log.

    Args:
      total_steps: The step at which the run ends.
      epochs: The epochs that this is.
      start_step: The step from which this process goes on; where the bar begins.
      log: A file to which each line is appended, with the date and time; None for no log.
      quiet: Say nothing: one process of a job speaks for all.
      stream: Where to show progress; the standard error stream if None.
      clock: A function that returns seconds; tests pass their own.
    """
    self._total_steps = total_steps
    self._epochs = epochs
    self._validation = None
    self._pace = _Pace(total_steps, clock)
    self._log = log and open(log, 'a', encoding='utf-8', errors='backslashreplace', buffering=1)  # noqa: SIM115
    self._quiet = quiet
    self._stream = stream or sys.stderr
    terminal = not quiet and self._stream.isatty() and os.environ.get('TERM') != 'dumb'
    self._bar = _Bar(self._stream, total_steps, start_step) if terminal else None

  def update(
    self,
    step: int,
    *,
    epoch: float,
    loss: float,
    images_per_second: float | None = None,
    data_wait: float | None = None,
  ) -> None:
    """Shows where the run is.

    Args:
      step: Steps done.
      epoch: Epochs done, with a fraction.
      loss: The training loss now.
      images_per_second: The speed now, without pauses.
      data_wait: The share of the time, in [0, 1], that the devices waited for images.
    """
    facts = [
      f'epoch {epoch:.1f}/{self._epochs:g}',
      f'step {step:,}/{self._total_steps:,}',
      f'loss {_loss(loss)}',
    ]
    if self._validation:
      facts.append(f'val {self._validation}')
    if images_per_second is not None:
      facts.append(f'{_speed(images_per_second)} img/s')
    if data_wait is not None:
      facts.append(f'(data {100 * data_wait:.1f}%)')
    seconds_left = self._pace.seconds_left(step)
    if seconds_left is not None:
      facts.append(f'ETA {duration(seconds_left)}')
    line = '  '.join(facts)
    self._record(line)
    self._show(line, step)

  def evaluation(self, scalars: Mapping[str, float]) -> None:
    """Keeps the result of an evaluation for the lines that follow.

    Args:
      scalars: `eval/top1_error` and, with more than five classes, `eval/top5_error`: shares in
        [0, 1]. Other names are ignored.
    """
    errors = (scalars.get('eval/top1_error'), scalars.get('eval/top5_error'))
    self._validation = '/'.join(f'{100 * error:.1f}' for error in errors if error is not None)

  def message(self, text: str) -> None:
    """Prints `text`, of one line or more, above the bar."""
    self._record(text)
    self._show(text)

  def restart_pace(self) -> None:
    """Forgets how fast the steps were, after a time in which the process was suspended."""
    self._pace.restart()

  def close(self) -> None:
    """Leaves the last line on the terminal and closes the log; may be called twice."""
    if self._bar:
      with contextlib.suppress(OSError):
        self._bar.close()
    if self._log:
      self._log.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _show(self, text: str, step: int | None = None) -> None:
    """Shows a line of progress after a step, else a message."""
    try:
      if self._bar:
        self._bar.message(text) if step is None else self._bar.show(step, text)
      elif not self._quiet:
        print(text, file=self._stream, flush=True)
    except OSError:  # the terminal has hung up; the log goes on
      self._bar, self._quiet = None, True

  def _record(self, text: str) -> None:
    if self._log:
      now = time.strftime('%Y-%m-%d %H:%M:%S')
      self._log.write(''.join(f'{now}  {line}'.rstrip() + '\n' for line in text.split('\n')))


class _Pace:
  """Tells the time left from the steps done lately, pauses for evaluation and saving included.

  "Lately" is the latter half of the steps of this process: soon long enough to hold the pauses in
  their true share, and a change of speed is forgotten when as much again has been done. The time
  before the first call, with its compilation, and earlier processes do not count.
  """

  def __init__(self, total_steps: int, clock: Callable[[], float]):
    self._total_steps = total_steps
    self._clock = clock
    self.restart()

  def restart(self) -> None:
    """Forgets the steps so far."""
    self._first_step = None
    self._marks = collections.deque()  # (seconds, step)

  def seconds_left(self, step: int) -> float | None:
    """Seconds until the last step; None until two different steps have been seen."""
    now = self._clock()
    if self._first_step is None:
      self._first_step = step
    self._marks.append((now, step))
    half = (self._first_step + step) / 2
    while len(self._marks) > 2 and self._marks[1][1] <= half:
      self._marks.popleft()
    then, step_then = self._marks[0]
    if step == step_then:
      return None
    return (self._total_steps - step) * (now - then) / (step - step_then)


class _Bar:
  """A progress bar over one line of text, kept at the bottom of a terminal."""

  def __init__(self, stream: TextIO, total_steps: int, start_step: int):
    import rich.console
    import rich.live

    self._total_steps = total_steps
    self._console = rich.console.Console(file=stream, force_terminal=True)
    self._live = rich.live.Live(
      self._picture(start_step, ''),
      console=self._console,
      auto_refresh=False,  # No thread: the picture changes only when there is news.
      redirect_stdout=sys.stdout.isatty(),  # A redirected output belongs in its file.
      redirect_stderr=stream is sys.stderr,
    )
    self._live.start()

  def show(self, step: int, line: str) -> None:
    self._live.update(self._picture(step, line), refresh=True)

  def message(self, text: str) -> None:
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def close(self) -> None:
    self._live.stop()

  def _picture(self, step: int, line: str):
    import rich.progress_bar
    import rich.table
    import rich.text

    text = rich.text.Text(line)
    text.highlight_words(('epoch', 'step', 'loss', 'val', 'img/s', 'ETA'), style='dim')
    text.highlight_regex(r'\(.*\)', 'dim')
    picture = rich.table.Table.grid(expand=True)
    picture.add_row(rich.progress_bar.ProgressBar(total=self._total_steps, completed=step))
    picture.add_row(text)
    return picture


def results_table(results: Mapping[str, Any]) -> str:
  """The final table of a run, as aligned text.

  Args:
    results: What is known of these; the rest is left out.
      `<evaluation>/top1_error`, `<evaluation>/top5_error` (shares in [0, 1]), `<evaluation>/loss`:
      a row for each evaluation (`eval`, `ten_views`, ...) in the order given;
      `parameters`, `epoch`, `images_per_second`, `seconds`, `workdir`, `figures`: a line each.
  """
  table = [('', 'top-1 error', 'top-5 error', 'top-1 accuracy', 'top-5 accuracy', 'loss')]
  for name in dict.fromkeys(key.split('/')[0] for key in results if key.endswith('/top1_error')):
    top1, top5 = results[f'{name}/top1_error'], results.get(f'{name}/top5_error')
    accuracies = [None if error is None else 1 - error for error in (top1, top5)]
    loss = results.get(f'{name}/loss')
    cells = [_percent(share) for share in (top1, top5, *accuracies)]
    table.append((name.replace('_', ' '), *cells, '-' if loss is None else f'{loss:.4f}'))
  facts = {
    'parameters': lambda n: f'{n:,}',
    'epoch': lambda n: f'{n:g}',
    'images_per_second': _speed,
    'seconds': duration,
    'workdir': str,
    'figures': str,
  }
  titles = {'images_per_second': 'images/s', 'seconds': 'time'}
  lines = _aligned(table) if len(table) > 1 else []
  for name, write in facts.items():
    if results.get(name) is not None:
      lines.append(f'{titles.get(name, name):<12}{write(results[name])}')
  return '\n'.join(lines)


def class_table(rows: Sequence[tuple[str, int, float, str]]) -> str:
  """Errors of classes, as aligned text.

  Args:
    rows: name, images, error (a share in [0, 1]) and what it is most often taken for, or ''.
  """
  table = [('class', 'images', 'top-1 error', 'mostly taken for')]
  table += [(name, f'{n:,}', _percent(error), other) for name, n, error, other in rows]
  return '\n'.join(_aligned(table, left=(0, 3)))


def duration(seconds: float) -> str:
  """Seconds as people say them: 42s, 12m05s, 3h12m, 6d03h."""
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


def _loss(loss: float) -> str:
  """Three digits that count, without jumping about: 6.91, 0.084."""
  return f'{loss:.2f}' if not abs(loss) < 1 else f'{loss:.3f}'


def _speed(images_per_second: float) -> str:
  return f'{images_per_second:,.0f}' if images_per_second >= 10 else f'{images_per_second:.1f}'


def _percent(share: float | None) -> str:
  return '-' if share is None else f'{100 * share:.2f}%'


def _aligned(table: list[tuple[str, ...]], left: Collection[int] = (0,)) -> list[str]:
  """Lines of a table: the columns `left` to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  widths[0] = max(widths[0], 10)
  return [
    '  '.join(
      cell.ljust(width) if column in left else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in table
  ]
