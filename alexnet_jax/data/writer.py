"""Writes a store with many processes, so that a kill at any time loses little and breaks nothing.

Everything happens in `<store>.tmp` (see `job`), which is renamed when it is complete; images that
have to be unpacked first are in `<store>.unpacked.tmp` meanwhile.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from alexnet_jax.data import store, unpack
from alexnet_jax.data.examples import Part, Source
from alexnet_jax.data.job import Job
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.environment import usable_cores
from alexnet_jax.terminal import Console

ROWS_PER_PART = 1024  # about 3 s of one core at full ImageNet size: what a kill can lose
_PAUSE = 0.5  # seconds between looks at what workers have written
_work: tuple[Job, multiprocessing.connection.Connection, Any]  # of a worker process


def write_store(
  source: Source,
  path: pathlib.Path | str,
  *,
  image_size: int,
  resize: str,
  unreadable: str = 'error',
  workers: int = 0,
  progress: Console | None = None,
  rows_per_part: int = ROWS_PER_PART,
  encoding: str = store.RAW,
) -> store.Store:
  """Writes a store, or finishes one whose writing was interrupted; opens it if it is there.

  Args:
    source: labeled images; pickled to the workers.
    path: folder of the store.
    image_size: S, side of the images in pixels.
    resize: 'crop' or 'warp'.
    unreadable: 'error' ends with a list of all unreadable images, 'skip' leaves them out.
    workers: processes; 0 for one per core. 1 works in this process.
    progress: for messages; none by default.
    rows_per_part: rows that a process writes at a time; what it lost if killed.
    encoding: how images are stored: 'raw', or 'jpeg 90' for quality 90.

  Raises:
    UserError: the disk is too small, images are unreadable, a label is no class, a worker died, or
      another store is there.
  """
  path, progress = pathlib.Path(path), progress or Console(quiet=True)
  folder = path.with_name(path.name + '.tmp')
  unpacked = path.with_name(path.name + '.unpacked.tmp')
  job = Job(source, folder, image_size, resize, rows_per_part, encoding)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path, progress) as held:
      if not path.exists():
        if not job.is_committed():
          parts = job.begin()
          source = unpack.unpack(source, unpacked, progress) if parts else source
          readable = dataclasses.replace(job, source=source)
          _write_parts(readable, parts, workers, progress, held)
          job.commit(unreadable)
        job.publish(path)
        shutil.rmtree(unpacked, ignore_errors=True)
  except OSError as error:
    raise UserError(
      f'cannot write {path}: {error}; run again to go on from here, or set --config.data.store to '
      'another place'
    ) from error
  written = store.open_store(path)
  store.check_made_from(written, store.made_from(source, image_size, resize, encoding))
  return written


@contextlib.contextmanager
def lock(path: pathlib.Path, progress: Console) -> Iterator[TextIO]:
  """Lets one process write `path` at a time; others wait. The system ends it with the process."""
  with open(path.with_name(f'.{path.name}.lock'), 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      progress.message(f'another process is preparing {path}: waiting for it')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield file


def _write_parts(
  job: Job, parts: list[Part], workers: int, progress: Console, lock: TextIO
) -> None:
  total, rows = sum(map(len, job.indices.values())), sum(map(len, parts))
  workers = min(workers or usable_cores(), len(parts))
  title = f'preparing {job.source.name} {job.image_size}x{job.image_size}'
  with progress.count(title, total, total - rows) as advance:
    if workers > 1:
      _write_in_processes(job, parts, workers, advance, lock)
    else:
      for part in parts:
        job.write_part(part, advance)


def _write_in_processes(
  job: Job, parts: list[Part], workers: int, advance: Callable[[int], object], lock: TextIO
) -> None:
  # Of what holds a descriptor, a connection is what can be sent to a process that starts.
  held = multiprocessing.connection.Connection(os.dup(lock.fileno()))
  context = multiprocessing.get_context('spawn')
  rows = context.RawArray('q', len(parts))  # written of each part
  pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker, (job, held, rows))
  try:
    pending = {pool.submit(_write_part, part, place) for place, part in enumerate(parts)}
    said = 0
    while pending:
      done, pending = concurrent.futures.wait(pending, _PAUSE)
      for written in done:
        written.result()
      now = sum(rows)
      advance(now - said)
      said = now
  except concurrent.futures.process.BrokenProcessPool as error:
    raise UserError(
      'a preparing process died, which is often too little memory: run again to go on from here, '
      'with fewer --workers'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)
    held.close()


def _begin_worker(job: Job, held: multiprocessing.connection.Connection, rows: Any) -> None:
  """Prepares a worker process.

  It holds the lock until it ends, and ends with its parent, even after kill -9: none writes beside
  those of the next run.
  """
  global _work
  _work = job, held, rows
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  if parent := multiprocessing.parent_process():
    parent.join()
    os._exit(1)


def _write_part(part: Part, place: int) -> None:
  job, _, rows = _work

  def advance(n: int) -> None:
    rows[place] += n

  job.write_part(part, advance)
