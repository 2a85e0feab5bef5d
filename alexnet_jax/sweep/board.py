"""Where every member of a sweep is: one live table on a terminal, a line a change elsewhere."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TextIO

from alexnet_jax.results.console import duration
from alexnet_jax.results.metrics import JSONL
from alexnet_jax.sweep.members import Member
from alexnet_jax.sweep.runner import DONE, ELSEWHERE, FAILED, RUNNING, STOPPED, WAITING, Runner

_TAIL = 1 << 16  # bytes of a record that are looked at: hundreds of lines
_COLOURS = {RUNNING: 'cyan', DONE: 'green', FAILED: 'red', STOPPED: 'yellow', ELSEWHERE: 'yellow'}
_FIRST = (FAILED, RUNNING, ELSEWHERE, STOPPED, WAITING, DONE)  # where there is no room for all


class Board:
  """Shows a runner's members."""

  def __init__(self, runner: Runner, jobs: int, stream: TextIO | None = None):
    self._runner = runner
    self._jobs = jobs
    self._stream = stream or sys.stderr
    self._said: dict[str, tuple] = {}
    self._live = None
    if self._stream.isatty() and os.environ.get('TERM') != 'dumb':
      import rich.console
      import rich.live

      self._console = rich.console.Console(file=self._stream, force_terminal=True)
      self._live = rich.live.Live(console=self._console, auto_refresh=False)

  def __enter__(self) -> Self:
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._live:
      self._live.stop()

  def show(self) -> None:
    facts = {member.name: progress(member.workdir) for member in self._runner.members}
    if self._live:
      self._live.update(self._table(facts), refresh=True)
      return
    for member in self._runner.members:
      state = self._runner.states[member.name]
      news = (state.status, facts[member.name].get('eval/top1_error'))
      if news != self._said.get(member.name, (WAITING, news[1])):
        cells = [text for text in self._cells(member, facts[member.name])[1:] if text]
        print(
          time.strftime('%H:%M:%S'), member.name, *cells, sep='  ', file=self._stream, flush=True
        )
      self._said[member.name] = news

  def _cells(self, member: Member, facts: Mapping[str, float]) -> list[str]:
    """Member, state, epoch, error, speed and time left as text, '' where not known."""
    state, epochs = self._runner.states[member.name], member.config.epochs
    left = _seconds_left(facts, epochs) if state.status == RUNNING else None
    error, speed = facts.get('eval/top1_error'), facts.get('images_per_second')
    cells = [
      member.name,
      state.status + (f' (exit {state.code})' if state.code else ''),
      f'epoch {facts["epoch"]:.1f}/{epochs:g}' if 'epoch' in facts else '',
      f'error {100 * error:.2f} %' if error is not None else '',
      f'{speed:,.0f} img/s' if speed and state.status == RUNNING else '',
      f'ETA {duration(left)}' if left is not None else '',
    ]
    return [*cells, state.error] if state.error else cells

  def _table(self, facts: Mapping[str, Mapping[str, float]]):
    import rich.table
    import rich.text

    members, states = list(self._runner.members), self._runner.states
    room = max(self._console.height - 4, 3)
    if len(members) > room:
      members = sorted(members, key=lambda member: _FIRST.index(states[member.name].status))[:room]
    table = rich.table.Table(box=None, pad_edge=False, caption=self._summary(facts))
    table.caption_justify = 'left'
    for _ in range(7):
      table.add_column(no_wrap=True)
    for member in members:
      cells = (self._cells(member, facts[member.name]) + [''])[:7]
      style = _COLOURS.get(states[member.name].status, 'dim')
      table.add_row(cells[0], rich.text.Text(cells[1], style), *map(rich.text.Text, cells[2:]))
    return table

  def _summary(self, facts: Mapping[str, Mapping[str, float]]) -> str:
    states = self._runner.states
    text = f'{sum(s.status == DONE for s in states.values())} of {len(states)} done'
    if failed := sum(s.status == FAILED for s in states.values()):
      text += f', {failed} failed'
    known = (f for f in facts.values() if f.get('epoch', 0) > 0.05 and 'seconds' in f)
    paces = [f['seconds'] / f['epoch'] for f in known]
    epochs = sum(
      max(member.config.epochs - facts[member.name].get('epoch', 0.0), 0.0)
      for member in self._runner.members
      if states[member.name].status in (RUNNING, WAITING)
    )
    if paces and epochs:
      text += f', about {duration(epochs * sum(paces) / len(paces) / self._jobs)} to go'
    return text


def progress(workdir: Path) -> dict[str, float]:
  """The newest value of every metric in the last part of a run's record; {} before there is one."""
  try:
    with open(workdir / JSONL, 'rb') as file:
      file.seek(max(os.path.getsize(file.name) - _TAIL, 0))
      lines = file.read().splitlines()
  except OSError:
    return {}
  newest: dict[str, float] = {}
  for line in lines:
    try:
      record = json.loads(line)
      newest |= {name: value for name, value in record.items() if value is not None}
    except (ValueError, AttributeError, TypeError):  # the first and last line may be in parts
      continue
  return newest


def _seconds_left(facts: Mapping[str, float], epochs: float) -> float | None:
  if not facts.get('epoch') or 'seconds' not in facts:
    return None
  return max(epochs - facts['epoch'], 0.0) * facts['seconds'] / facts['epoch']
