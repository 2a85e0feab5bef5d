"""Writes a store with many processes, so that killing it at any time loses little and breaks nothing.

Everything happens in `<store>.tmp`, renamed when complete. Each split has one preallocated image file;
a task writes its own range of rows into it, syncs, and publishes a small record (labels, sums, checksum,
unreadable images) by a rename. A rerun does only the parts that have no record. Records are merged in
order with integer sums, so the result is the same to the byte for any number of workers.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL

from alexnet_jax.data import statistics, store
from alexnet_jax.data.images import RESIZES, UnreadableImage
from alexnet_jax.data.progress import Progress, Silent
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

ROWS_PER_PART = 1024  # about 3 s of one core at full ImageNet size: what a kill can lose
ROWS_PER_WRITE = 64
NAMED_IN_MESSAGE = 5


def write_store(
  source: Source,
  path: pathlib.Path,
  *,
  image_size: int,
  resize: str,
  unreadable: str = 'error',
  workers: int = 0,
  progress: Progress | None = None,
  rows_per_part: int = ROWS_PER_PART,
) -> store.Store:
  """Writes a store, or finishes one whose writing was interrupted; returns it if it is there.

  Args:
    source: labelled images; pickled to the workers.
    path: folder of the store.
    image_size: S, side of the images in pixels.
    resize: 'crop' or 'warp'.
    unreadable: 'error' ends with a list of all unreadable images, 'skip' leaves them out. A row left
      out is taken by the last row of its split, so nothing else moves.
    workers: processes; 0 for one a core. 1 works in this process.
    progress: where to tell the user.
    rows_per_part: rows a task writes at a time.

  Raises:
    UserError: disk too small, unreadable images, a label that is no class, or a worker that died.
  """
  if resize not in RESIZES or unreadable not in ('error', 'skip'):
    raise UserError(f'data.resize={resize!r} must be one of {RESIZES} and data.unreadable={unreadable!r} '
                    "one of ('error', 'skip')")
  progress = progress or Silent()
  path.parent.mkdir(parents=True, exist_ok=True)
  with _lock(path, progress):
    if path.exists():
      return store.open_store(path)
    job = _Job(source, path.with_name(path.name + '.tmp'), image_size, resize, rows_per_part)
    try:
      if not job.committed():
        job.check_room()
        job.begin()
        job.write_parts(workers, progress)
        job.merge(unreadable)
      job.publish(path)
    except OSError as error:
      raise UserError(f'cannot write {path}: {error}; run again to go on from here') from error
    return store.open_store(path)


@contextlib.contextmanager
def _lock(path: pathlib.Path, progress: Progress) -> Iterator[None]:
  """One writer of a store at a time; others wait. Ends with the process, however it ends."""
  with open(path.with_name(f'.{path.name}.lock'), 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      progress.say(f'another process is preparing {path}: waiting for it')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@dataclasses.dataclass(frozen=True)
class _Part:
  """Rows `start` to `stop` of a split."""

  split: str
  number: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class _Job:
  """The writing of one store in `folder`."""

  source: Source
  folder: pathlib.Path
  image_size: int
  resize: str
  rows_per_part: int

  @functools.cached_property
  def indices(self) -> dict[str, np.ndarray]:
    return store.row_order(self.source)

  @property
  def row_bytes(self) -> int:
    return self.image_size**2 * 3

  def parts(self, split: str) -> list[_Part]:
    n, size = len(self.indices[split]), self.rows_per_part
    return [_Part(split, k, first, min(n, first + size)) for k, first in enumerate(range(0, n, size))]

  def images_file(self, split: str) -> pathlib.Path:
    return self.folder / split / 'images.npy.tmp'

  def record_file(self, part: _Part) -> pathlib.Path:
    return self.folder / 'parts' / f'{part.split}-{part.number:05}.npz'

  def committed(self) -> bool:
    """Whether an interrupted run had everything written but the last renames."""
    return self._same('meta.json')

  def _describe(self) -> dict[str, Any]:
    return store.describe(self.source, self.image_size, self.resize)

  def _same(self, name: str) -> bool:
    try:
      found = json.loads((self.folder / name).read_text())
    except (OSError, ValueError):
      return False
    expected = self._describe() | {'rows_per_part': self.rows_per_part}
    return expected == {key: found.get(key) for key in expected}

  def check_room(self) -> None:
    """Raises UserError unless what remains to be written fits the disk."""
    images = sum(len(indices) for indices in self.indices.values()) * self.row_bytes
    records = len(self.parts('train')) * self.row_bytes * 4
    there = 0
    if self._same('job.json'):
      there = sum(file.stat().st_blocks * 512 for file in self.folder.rglob('*'))
    needed = images + records - there
    free = shutil.disk_usage(self.folder.parent).free
    if needed > free:
      raise UserError(
        f'{self.folder.parent} has {free:,} bytes free and the store needs {needed:,} more: free some, '
        'set --config.data.store to another disk, or lower --config.data.image_size'
      )

  def begin(self) -> None:
    """Preallocates the files, unless an interrupted run of the same job did."""
    if self._same('job.json'):
      return
    shutil.rmtree(self.folder, ignore_errors=True)
    (self.folder / 'parts').mkdir(parents=True)
    for split, indices in self.indices.items():
      (self.folder / split).mkdir()
      self._set_rows(split, len(indices))
    _write_json(self.folder / 'job.json', self._describe() | {'rows_per_part': self.rows_per_part})

  def _set_rows(self, split: str, n: int) -> None:
    """Makes the image file one of `n` rows, keeping what it has."""
    file = self.images_file(split)
    shape = (n, self.image_size, self.image_size, 3)
    with open(file, 'r+b' if file.exists() else 'w+b') as stream:
      np.lib.format.write_array_header_1_0(
        stream, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
      )
      stream.truncate(stream.tell() + n * self.row_bytes)
      stream.flush()
      os.fsync(stream.fileno())

  def write_parts(self, workers: int, progress: Progress) -> None:
    """Writes the parts that have no record yet."""
    everything = [part for split in store.SPLITS for part in self.parts(split)]
    waiting = [part for part in everything if not self.record_file(part).exists()]
    total, remaining = (sum(p.stop - p.start for p in parts) for parts in (everything, waiting))
    workers = min(workers or len(os.sched_getaffinity(0)), len(waiting))
    title = f'preparing {self.source.name} {self.image_size}x{self.image_size}'
    with progress.count(title, total, total - remaining) as advance:
      if workers > 1:
        _share_out(self, waiting, workers, advance)
      else:
        for part in waiting:
          self.write_part(part, advance)

  def write_part(self, part: _Part, advance: Callable[[int], None]) -> None:
    """Writes one range of rows, then its record. Unreadable rows are left black."""
    shape = (self.image_size, self.image_size, 3)
    totals = statistics.sums(np.empty((0, *shape), np.uint8))
    labels = np.zeros(part.stop - part.start, np.int32)
    bad: list[tuple[int, str]] = []
    crc = 0
    with open(self.images_file(part.split), 'r+b') as file:
      np.lib.format.read_magic(file)
      np.lib.format.read_array_header_1_0(file)
      file.seek(part.start * self.row_bytes, os.SEEK_CUR)
      for first in range(part.start, part.stop, ROWS_PER_WRITE):
        rows = range(first, min(part.stop, first + ROWS_PER_WRITE))
        block = np.zeros((len(rows), *shape), np.uint8)
        good = np.ones(len(rows), bool)
        for place, row in enumerate(rows):
          try:
            block[place], labels[row - part.start] = store.read_row(
              getattr(self.source, part.split), int(self.indices[part.split][row]),
              len(self.source.classes), self.image_size, self.resize,
            )
          except UnreadableImage as error:
            good[place] = False
            bad.append((row, str(error)))
        file.write(block)
        crc = zlib.crc32(block, crc)
        if part.split == 'train':
          totals += statistics.sums(block[good])
        advance(len(rows))
      file.flush()
      os.fsync(file.fileno())
    bad_rows, reasons = zip(*bad, strict=True) if bad else ((), ())
    _write_npz(
      self.record_file(part), labels=labels, crc=np.uint32(crc), count=totals.count,
      pixels=totals.pixels.astype(np.uint32), products=totals.products,
      bad_rows=np.array(bad_rows, np.int64), reasons=np.array(reasons, np.str_),
    )

  def merge(self, unreadable: str) -> None:
    """Turns the records into labels, statistics and meta.json; the latter commits the store."""
    bad = {split: self._bad(split) for split in store.SPLITS}
    if unreadable == 'error' and any(bad.values()):
      raise self._unreadable(bad)
    meta = self._describe() | {'rows_per_part': self.rows_per_part, 'counts': {}, 'crc32': {}}
    for split in store.SPLITS:
      count = len(self.indices[split]) - len(bad[split])
      if not count:
        raise UserError(f'{self.source.name} has no readable image in its {split} split')
      meta['counts'][split] = count
      meta['crc32'] |= self._merge_rows(split, count, sorted(bad[split]))
    mean, stdevs, eigenvectors = self._merge_statistics()
    _write_npy(self.folder / 'mean.npy', mean)
    meta['crc32']['mean.npy'] = zlib.crc32((self.folder / 'mean.npy').read_bytes())
    meta |= {
      'colour_stdevs': stdevs.tolist(),
      'colour_eigenvectors': eigenvectors.tolist(),
      'unreadable': {split: [bad[split][row] for row in sorted(bad[split])] for split in bad},
      'versions': {'numpy': np.__version__, 'pillow': PIL.__version__},
    }
    _write_json(self.folder / 'meta.json', meta)

  def _bad(self, split: str) -> dict[int, str]:
    """Unreadable rows and why."""
    result = {}
    for part in self.parts(split):
      with np.load(self.record_file(part), allow_pickle=False) as record:
        result |= dict(zip(record['bad_rows'].tolist(), record['reasons'].tolist(), strict=True))
    return result

  def _unreadable(self, bad: dict[str, dict[int, str]]) -> UserError:
    """The error that lists unreadable images; their parts will be tried again."""
    for split, reasons in bad.items():
      for part in self.parts(split):
        if any(part.start <= row < part.stop for row in reasons):
          self.record_file(part).unlink()
    lines = [reasons[row] for reasons in bad.values() for row in sorted(reasons)]
    listing = self.folder.with_suffix('.unreadable.txt')
    listing.write_text('\n'.join(lines) + '\n', errors='surrogateescape')
    more = f' and {len(lines) - NAMED_IN_MESSAGE} more' if len(lines) > NAMED_IN_MESSAGE else ''
    return UserError(
      f'{len(lines)} unreadable image(s), listed in {listing}: {"; ".join(lines[:NAMED_IN_MESSAGE])}'
      f'{more}. Repair them, or leave them out with --config.data.unreadable=skip; the rest is kept'
    )

  def _merge_rows(self, split: str, count: int, bad: list[int]) -> dict[str, Any]:
    """Fills the holes from the end; writes labels and source indices. Can be repeated.

    Nothing is cut off before meta.json is there, so an interrupted merge starts anew from all rows.
    """
    labels, checksums = [], []
    for part in self.parts(split):
      with np.load(self.record_file(part), allow_pickle=False) as record:
        labels.append(record['labels'])
        checksums.append(int(record['crc']))
    labels, indices = np.concatenate(labels), self.indices[split].copy()
    holes = [row for row in bad if row < count]
    fillers = sorted(set(range(count, len(labels))) - set(bad))
    labels[holes], indices[holes] = labels[fillers], indices[fillers]
    checksums = checksums[: -(-count // self.rows_per_part)]
    if bad:
      images = np.lib.format.open_memmap(self.images_file(split), mode='r+')
      for hole, filler in zip(holes, fillers, strict=True):
        images[hole] = images[filler]
      images.flush()
      for number in {*(hole // self.rows_per_part for hole in holes), len(checksums) - 1}:
        rows = slice(number * self.rows_per_part, min(count, (number + 1) * self.rows_per_part))
        checksums[number] = zlib.crc32(images[rows])
    _write_npy(self.folder / split / 'labels.npy', labels[:count])
    _write_npy(self.folder / split / 'source_index.npy', indices[:count])
    return {
      f'{split}/images.npy': checksums,
      f'{split}/labels.npy': zlib.crc32((self.folder / split / 'labels.npy').read_bytes()),
    }

  def _merge_statistics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    totals = statistics.sums(np.empty((0, self.image_size, self.image_size, 3), np.uint8))
    for part in self.parts('train'):
      with np.load(self.record_file(part), allow_pickle=False) as record:
        totals += statistics.Sums(
          int(record['count']), record['pixels'].astype(np.uint64), record['products']
        )
    return statistics.mean_image(totals), *statistics.colour_components(totals)

  def publish(self, path: pathlib.Path) -> None:
    """The last renames. Can be repeated."""
    counts = json.loads((self.folder / 'meta.json').read_text())['counts']
    for split, count in counts.items():
      file = self.images_file(split)
      if file.exists():
        self._set_rows(split, count)
        file.rename(file.with_suffix(''))
    shutil.rmtree(self.folder / 'parts', ignore_errors=True)
    (self.folder / 'job.json').unlink(missing_ok=True)
    self.folder.rename(path)


def _share_out(
  job: _Job, parts: list[_Part], workers: int, advance: Callable[[int], None]
) -> None:
  """Writes parts in worker processes, which report through a pipe each.

  A worker whose pipe breaks ends, so none outlives this process for long, even after kill -9.
  """
  context = multiprocessing.get_context('spawn')
  processes = {}
  try:
    for worker in range(workers):
      reader, writer = context.Pipe(duplex=False)
      process = context.Process(target=_work, args=(job, parts[worker::workers], writer), daemon=True)
      process.start()
      writer.close()
      processes[reader] = process
    running = set(processes)
    while running:
      for reader in multiprocessing.connection.wait(running):
        try:
          message = reader.recv()
        except EOFError:
          running.remove(reader)
          processes[reader].join()
          if code := processes[reader].exitcode:
            raise UserError(
              f'a preparing process died (exit code {code}; -9 is often too little memory): run again '
              'to go on from here, with fewer workers if it repeats'
            ) from None
          continue
        if isinstance(message, Exception):
          raise message
        advance(message)
  finally:
    for process in processes.values():
      process.terminate()
      process.join()


def _work(job: _Job, parts: list[_Part], writer: multiprocessing.connection.Connection) -> None:
  """Body of a worker: sends counts of rows done, or the exception that ended it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
  try:
    for part in parts:
      job.write_part(part, writer.send)
  except (UserError, OSError) as error:
    with contextlib.suppress(OSError):
      writer.send(error)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  with _replacing(path) as file:
    file.write((json.dumps(value, indent=1) + '\n').encode())


def _write_npy(path: pathlib.Path, value: np.ndarray) -> None:
  with _replacing(path) as file:
    np.save(file, value, allow_pickle=False)


def _write_npz(path: pathlib.Path, **values: Any) -> None:
  with _replacing(path) as file:
    np.savez(file, **values)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[Any]:
  """A file that appears under its name when it is complete and on disk."""
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'wb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)
