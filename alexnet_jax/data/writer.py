"""Writes a store with many processes, so that a kill at any time loses little and breaks nothing.

Everything happens in `<store>.tmp` (see `job`), which is renamed when it is complete.
"""

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import pathlib
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from alexnet_jax.data import merge, store
from alexnet_jax.data.examples import Source
from alexnet_jax.data.job import Job, Part
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.cores import usable_cores
from alexnet_jax.terminal import Console

ROWS_PER_PART = 1024  # about 3 s of one core at full ImageNet size: what a kill can lose


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
  job = Job(source, folder, image_size, resize, rows_per_part, encoding)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path, progress) as held:
      if not path.exists():
        if not job.is_described_by('meta.json'):
          job.check_disk_space()
          job.begin()
          _write_parts(job, workers, progress, held)
          merge.commit(job, unreadable)
        merge.publish(job, path)
  except OSError as error:
    raise UserError(
      f'cannot write {path}: {error}; run again to go on from here, or set --config.data.store to '
      'another place'
    ) from error
  written = store.open_store(path)
  store.check_same(written, store.describe(source, image_size, resize, encoding))
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


def _write_parts(job: Job, workers: int, progress: Console, lock: TextIO) -> None:
  """Writes the parts that have no record yet."""
  began, spent = time.monotonic(), _core_seconds()
  waiting = job.waiting()
  total = sum(len(indices) for indices in job.indices.values())
  done = total - sum(map(len, waiting))
  workers = min(workers or usable_cores(), len(waiting))
  title = f'preparing {job.source.name} {job.image_size}x{job.image_size}'
  with progress.count(title, total, done) as advance:
    if workers > 1:
      _share_out(job, waiting, workers, advance, lock)
    else:
      for part in waiting:
        job.write_part(part, advance)
  if waiting:
    seconds, spent = time.monotonic() - began, _core_seconds() - spent
    progress.message(
      f'{total - done:,} images in {seconds:,.1f} s, {spent:,.1f} core-seconds: '
      f'{(total - done) / max(spent, 1e-9):,.0f} images per core-second'
    )


def _core_seconds() -> float:
  """Processor time of this process and of those that it started and that have ended."""
  usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _share_out(
  job: Job, parts: list[Part], workers: int, advance: Callable[[int], object], lock: TextIO
) -> None:
  """Writes parts in worker processes, which report through a pipe each.

  A worker whose pipe breaks ends, so none outlives this process for long, even after kill -9. Until
  then it holds the lock, so that none writes beside those of the next run.
  """
  context = multiprocessing.get_context('spawn')
  processes = {}
  # Of what holds a descriptor, a connection is what can be sent to a process that starts.
  held = multiprocessing.connection.Connection(os.dup(lock.fileno()))
  try:
    for worker in range(workers):
      reader, writer = context.Pipe(duplex=False)
      process = context.Process(
        target=_work, args=(job, parts[worker::workers], writer, held), daemon=True
      )
      process.start()
      writer.close()
      processes[reader] = process
    while processes:
      ready = multiprocessing.connection.wait(list(processes))
      for reader in [reader for reader in processes if reader in ready]:
        try:
          message = reader.recv()
        except EOFError:
          _finish(processes.pop(reader))
          continue
        if isinstance(message, Exception):
          raise message
        advance(message)
  finally:
    for process in processes.values():
      process.terminate()
      process.join()
    held.close()


def _finish(process: multiprocessing.process.BaseProcess) -> None:
  process.join()
  if process.exitcode:
    raise UserError(
      f'a preparing process died (exit code {process.exitcode}; -9 is often too little memory): '
      'run again to go on from here'
    )


def _work(
  job: Job,
  parts: list[Part],
  writer: multiprocessing.connection.Connection,
  held: multiprocessing.connection.Connection,
) -> None:
  """The body of a worker: sends numbers of rows written, or the error that ended it."""
  del held  # open as long as this process is
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
  try:
    for part in parts:
      job.write_part(part, writer.send)
  except (UserError, OSError) as error:
    with contextlib.suppress(OSError):
      writer.send(error)
