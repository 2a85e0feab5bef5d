"""The metrics of a run: metrics.jsonl, and metrics.csv and TensorBoard events made from it."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.run.tensorboard_events import EVENTS, EventWriter


class MetricWriter:
  """Writes scalars by step; after a kill and a resume the files are as of an unbroken run.

  * `metrics.jsonl`: one object a line, `"step"` first; numbers that are not finite are null. A kill
    loses at most the line being written.
  * `metrics.csv`: the same as a table, one row a step, one column a name. It is rebuilt from the
    JSON lines when the run starts, after each line with an `eval/` name, and on `close`, since its
    header grows with the names.
  * TensorBoard event files.
  """

  def __init__(self, workdir: str | os.PathLike, *, start_step: int = 0, tensorboard: bool = True):
    """Opens the record of a run that continues after `start_step`.

    Lines of later steps, and a last line cut short by a kill, are dropped: the run will write them
    again.

    Args:
      workdir: the run's folder; made if need be.
      start_step: the step of the run's state.
      tensorboard: whether to write event files.

    Raises:
      UserError: `metrics.jsonl` is damaged before its last line.
    """
    self._workdir = Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    path = RunFolder(workdir).metrics
    content = path.read_bytes() if path.exists() else b''
    records = [record for record in read_metrics(workdir) if record['step'] <= start_step]
    kept = ''.join(files.json_text(record) + '\n' for record in records).encode('utf-8')
    if kept != content:
      files.write(path, kept)
    self._write_csv()
    self._written = {(r['step'], name) for r in records for name in r}
    self._file = open(path, 'ab')  # noqa: SIM115
    self._events = None
    if tensorboard:
      resumed = any(self._workdir.glob(f'{EVENTS}*'))
      self._events = EventWriter(self._workdir, purge_step=start_step + 1 if resumed else None)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records `scalars` (name -> number) at `step`.

    A name already recorded at this step is skipped: a run that is killed after it has recorded an
    evaluation may evaluate again when it resumes.
    """
    step = int(step)
    new = {n: float(v) for n, v in scalars.items() if (step, n) not in self._written}
    if not new:
      return
    self._written.update((step, name) for name in new)
    self._file.write((files.json_text({'step': step, **new}) + '\n').encode('utf-8'))
    self._file.flush()
    if self._events:
      self._events.write(step, new)
    if any(name.startswith('eval/') for name in new):
      os.fsync(self._file.fileno())
      self._write_csv()

  def close(self) -> None:
    """Completes metrics.csv and closes the files; may be called twice."""
    if self._file.closed:
      return
    os.fsync(self._file.fileno())
    self._file.close()
    self._write_csv()
    if self._events:
      self._events.close()

  def _write_csv(self) -> None:
    """Replaces metrics.csv by the table of all lines: rows by step, columns as they appeared."""
    rows: dict[int, dict] = {}
    names: dict[str, None] = {'step': None}
    for record in read_metrics(self._workdir):
      rows.setdefault(record['step'], {}).update(record)
      names.update(dict.fromkeys(record))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(names), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    files.write(RunFolder(self._workdir).metrics_csv, table.getvalue())


class NoMetrics:
  """In place of a `MetricWriter` on all processes of a job but the first."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
  """Reads the metrics of a run, finished or not.

  Returns:
    One dict a line, in the order written: `step` (int) and names (float; null becomes NaN). A last
    line that is incomplete is left out.

  Raises:
    UserError: the file is damaged before its last line.
  """
  path = RunFolder(workdir).metrics
  lines = path.read_bytes().splitlines() if path.exists() else []
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      step = record.pop('step')
    except (ValueError, TypeError, AttributeError, KeyError):
      if number == len(lines):
        break
      raise UserError(
        f'{path}, line {number}, is not a JSON object with a "step": {line[:40]!r}; '
        'remove that line, then start the same command again'
      ) from None
    values = {name: math.nan if value is None else value for name, value in record.items()}
    records.append({'step': step, **values})
  return records
