"""Rows of a store -> batches of uint8 images, prepared a few ahead in the background.

Rows are gathered a batch at a time. Where the images are a memory map, a few threads read rows with
`preadv`: with a warm page cache that is as fast as copying from a memory map, with a cold one
several times faster than its page faults. JPEG images are decoded by as many threads as there are
cores. Every batch is a fresh buffer: JAX's CPU backend takes aligned NumPy memory over without a
copy, and would see a reused one change.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from alexnet_jax.data import order
from alexnet_jax.data.store import Split
from alexnet_jax.data.stored_images import JpegImages
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.environment import usable_cores

READERS = 4
DEPTH = 3  # batches to have ready
PAGE = 4096

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
  """Iterates over batches that a background thread makes ahead of time.

  An exception of the thread is raised by `next`. Use as a context manager, or call `close`.

  Attributes:
    wait_seconds: time spent in `next` so far.
  """

  def __init__(self, gather: 'Gather | None', make: Callable[[Any], Batch], steps: Iterable):
    """Calls `make(step)` for each of `steps`, DEPTH ahead; closes `gather` at the end."""
    self.wait_seconds = 0.0
    self._gather = gather
    self._make = make
    self._steps = iter(steps)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='feed')
    self._ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
    for _ in range(DEPTH):
      self._ask()

  def _ask(self) -> None:
    for step in itertools.islice(self._steps, 1):
      self._ahead.append(self._thread.submit(self._make, step))

  def __next__(self) -> Batch:
    if not self._ahead:
      self.close()
      raise StopIteration
    began = time.perf_counter()
    batch = self._ahead.popleft()
    self._ask()
    result = batch.result()
    self.wait_seconds += time.perf_counter() - began
    return result

  def close(self) -> None:
    """Ends the thread after the batch that it is making."""
    self._ahead.clear()
    self._steps = iter(())
    self._thread.shutdown(wait=True, cancel_futures=True)
    if self._gather is not None:
      self._gather.close()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def train_batches(
  split: Split,
  *,
  seed: int,
  start_step: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """Training batches without end, from `start_step` on: this process's part of each.

  Args:
    split: rows to learn from.
    seed: seed of the order of data.
    start_step: first step.
    batch_size: B, the global batch size; a multiple of `process_count`.
    process_index: number of this process.
    process_count: number of processes.

  Returns:
    An iterator of dicts, with b = B / process_count: `image` uint8 (b, S, S, 3), `label` int32
    (b,), `position` int32 (b,), in the global batch.
  """
  mine = part_of_batch(batch_size, process_index, process_count)
  gather = Gather(split)
  positions = np.arange(mine.start, mine.stop, dtype=np.int32)

  def make(step: int) -> Batch:
    rows = order.rows(seed, step, batch_size, len(split))[mine]
    return {'image': gather(rows), 'label': split.labels[rows], 'position': positions.copy()}

  return Batches(gather, make, itertools.count(start_step))


def all_images(split: Split) -> np.ndarray:
  """uint8 (N, S, S, 3): every image, as it lies in memory or its file, JPEG ones decoded."""
  if isinstance(split.images, np.ndarray):
    return split.images
  with contextlib.closing(Gather(split)) as gather:
    return gather(np.arange(len(split)))


def eval_batches(
  split: Split, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Batches:
  """Every row once over all processes, in the same number of batches on each.

  Args: as for `train_batches`.

  Returns:
    An iterator of dicts with `image` and `label` as of `train_batches`, and `row` int64 (b,);
    padding has black images, label 0 and row -1.
  """
  mine = part_of_batch(batch_size, process_index, process_count)
  gather = Gather(split)
  positions = np.arange(mine.start, mine.stop)

  def make(step: int) -> Batch:
    rows = step * batch_size + positions
    real = rows < len(split)
    labels = np.zeros(len(rows), np.int32)
    labels[real] = split.labels[rows[real]]
    images = gather(rows[real], len(rows))
    return {'image': images, 'label': labels, 'row': np.where(real, rows, -1)}

  return Batches(gather, make, range(-(-len(split) // batch_size)))


def part_of_batch(batch_size: int, process_index: int, process_count: int) -> slice:
  """The positions of a process in each global batch."""
  if batch_size % process_count:
    raise ValueError(f'batch size {batch_size} is no multiple of {process_count} processes')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


class Gather:
  """Gathers rows of a split's images into fresh, page-aligned memory."""

  def __init__(self, split: Split):
    self._images = images = split.images
    self._read: Callable[[np.ndarray, np.ndarray], None] | None = None
    self._threads = 1
    if isinstance(images, np.memmap):
      self._read, self._threads = functools.partial(_read_file, images), READERS
    elif isinstance(images, JpegImages):
      self._read, self._threads = images.read, usable_cores()
    self._readers = concurrent.futures.ThreadPoolExecutor(self._threads, thread_name_prefix='read')

  def __call__(self, rows: np.ndarray, size: int | None = None) -> np.ndarray:
    """uint8 (size, S, S, 3): the images of int64 `rows`, then black ones up to `size`."""
    out = _aligned((len(rows) if size is None else size, *self._images.shape[1:]))
    out[len(rows) :] = 0
    if self._read is None:
      np.take(self._images, rows, axis=0, out=out[: len(rows)], mode='clip')  # clip: no extra copy
      return out
    chunk = max(1, -(-len(rows) // self._threads))
    tasks = [
      self._readers.submit(self._read, rows[place : place + chunk], out[place:])
      for place in range(0, len(rows), chunk)
    ]
    try:
      for task in tasks:
        task.result()
    except OSError as error:
      raise UserError(
        f'the prepared images can no longer be read ({error}): bring their disk back, or delete'
        ' the store if it is damaged; the same command resumes from the last saved state'
      ) from error
    return out

  def close(self) -> None:
    """Ends the reading threads. Can be repeated."""
    self._readers.shutdown(wait=True)


def _read_file(images: np.memmap, rows: np.ndarray, out: np.ndarray) -> None:
  """Reads int64 `rows` (n,) to uint8 `out`, at least n rows long, neighboring rows at once."""
  memory, size = memoryview(out.reshape(-1)), out[0].nbytes
  ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
  file, place = os.open(str(images.filename), os.O_RDONLY), 0
  try:
    for end in ends:
      position = images.offset + int(rows[place]) * size
      target = memory[place * size : end * size]
      while target:
        count = os.preadv(file, [target], position)
        if not count:
          raise OSError(f'{images.filename} ends before byte {position}: it was cut off')
        target, position = target[count:], position + count
      place = end
  finally:
    os.close(file)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
  """Fresh uint8 memory that begins on a page, so that JAX on a CPU can take it over uncopied."""
  size = math.prod(shape)
  memory = np.empty(size + PAGE, np.uint8)
  start = -memory.ctypes.data % PAGE
  return memory[start : start + size].reshape(shape)
