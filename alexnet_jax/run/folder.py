"""The folder of a run: names of its files, its lock, and errors of its disk."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet_jax import files
from alexnet_jax.errors import DiskFailed, UserError


class RunFolder:
  """The paths of all files of a run."""

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    self.config = self.path / 'config.json'  # every field; a folder with it holds a run
    self.environment = self.path / 'env.json'  # versions and hardware of the last start
    self.preprocessing = self.path / 'preprocessing.npz'  # fields of `Preprocessing`
    self.changes = self.path / 'changes.jsonl'  # of the config since the run began, one a line
    self.lock = self.path / '.lock'  # held by the process that trains
    self.log = self.path / 'train.log'  # what the console said
    self.output = self.path / 'output.log'  # what the process printed, of a run of a sweep
    self.metrics = self.path / 'metrics.jsonl'  # scalars by step
    self.metrics_csv = self.path / 'metrics.csv'
    self.checkpoints = self.path / 'checkpoints'  # folder of `last/` and `best/`
    self.autotune = self.path / 'autotune'  # folder of the algorithms that a GPU chose by timing
    self.figures = self.path / 'figures'  # folder of PNGs
    self.results = self.path / 'results.json'  # of a finished run

  def figure(self, name: str) -> Path:
    """An image, such as 'learning_curves'."""
    return self.figures / f'{name}.png'

  def first_layer(self, step: int) -> Path:
    """The first layer's kernels at the evaluation after this number of steps."""
    return self.path / 'first_layer' / f'{step}.npz'

  def predictions(self, checkpoint: str, views: int) -> Path:
    """Probabilities of the validation images by 'last', 'best', ... over 1, 9 or 10 views."""
    return self.path / f'predictions-{checkpoint}-{views}.npz'

  def evaluation(self, checkpoint: str, views: int) -> Path:
    """What `evaluate` found with these `predictions`."""
    return self.path / f'evaluation-{checkpoint}-{views}.json'


def read_results(workdir: Path) -> dict[str, Any] | None:
  """The results of a finished run, else None.

  Raises:
    UserError: damaged.
  """
  path = RunFolder(workdir).results
  return files.read_json(path) if path.exists() else None


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """Makes the folder and locks it while this process lives, so that no other run writes there.

  Raises:
    UserError: another process holds it, or it cannot be written.
  """
  with files.one_line_error(f'--workdir={workdir}'):
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(RunFolder(workdir).lock, 'a+', encoding='utf-8')  # noqa: SIM115
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f'{workdir} is in use by {file.read().strip() or "another process"}: wait for it, stop it,'
        ' or choose another --workdir'
      ) from None
    except OSError:  # a file system without locks
      pass
    file.truncate(0)
    file.write(f'process {os.getpid()} on {platform.node()}')
    file.flush()
    yield


@contextlib.contextmanager
def disk_failures(workdir: Path) -> Iterator[None]:
  """Turns an OSError in the middle of a run, such as of a disk that goes away, into DiskFailed."""
  try:
    yield
  except (TimeoutError, ConnectionError):  # of other processes
    raise
  except OSError as error:
    reason = f'{error.filename}: {error.strerror}' if error.filename else error.strerror or error
    if not workdir.is_dir():
      reason = f'{workdir} is gone'
    raise DiskFailed(
      f'{reason}; what was saved is in {workdir}: once it can be written again, the same command'
      ' resumes from there'
    ) from error
