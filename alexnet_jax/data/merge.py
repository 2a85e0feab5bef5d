"""Merges the records of a finished job into a store.

Records are merged in order and their sums are integers, so the result is the same to the byte
whoever did which part. Each step can be interrupted and repeated: nothing is cut off or removed
before meta.json, which commits the store, is there.
"""

import json
import pathlib
import shutil
import zlib
from collections.abc import Container
from typing import Any

import numpy as np
import PIL

from alexnet_jax import files
from alexnet_jax.data import statistics, store
from alexnet_jax.data.job import Job
from alexnet_jax.errors import UserError

NAMED_IN_MESSAGE = 5


def commit(job: Job, unreadable: str) -> None:
  """Writes labels, statistics and meta.json.

  Args:
    job: all its parts have records.
    unreadable: 'error' or 'skip'. A row that is left out is taken by the last row of its split, so
      no other one moves.

  Raises:
    UserError: unreadable images that are not to be skipped, or a split without any readable image.
  """
  bad = {split: _unreadable_rows(job, split) for split in store.SPLITS}
  if unreadable == 'error' and any(bad.values()):
    raise _unreadable_error(job, bad)
  meta = job.describe() | {'class_names': list(job.source.class_names), 'counts': {}, 'crc32': {}}
  for split, reasons in bad.items():
    count = len(job.indices[split]) - len(reasons)
    if not count:
      raise UserError(f'{job.source.name} has no readable image to make its {split} split from')
    _check_classes(job, split, reasons)
    meta['counts'][split] = count
    meta['crc32'] |= _merge_rows(job, split, count, sorted(reasons))

  totals = statistics.sums(job.nothing)
  for part in job.parts('train'):
    record = job.record(part)
    pixels = record['pixels'].astype(np.uint64)
    totals += statistics.Sums(int(record['count']), pixels, record['products'])
  stdevs, eigenvectors = statistics.color_components(totals)
  _write_array(job.folder / 'mean.npy', statistics.mean_image(totals))
  meta['crc32']['mean.npy'] = zlib.crc32((job.folder / 'mean.npy').read_bytes())
  meta |= {
    'color_stdevs': stdevs.tolist(),
    'color_eigenvectors': eigenvectors.tolist(),
    'unreadable': {
      split: [reasons[row] for row in sorted(reasons)] for split, reasons in bad.items()
    },
    'versions': {'numpy': np.__version__, 'pillow': PIL.__version__},
  }
  files.write_json(job.folder / 'meta.json', meta)


def publish(job: Job, path: pathlib.Path) -> None:
  """Moves a committed store to its place."""
  counts = json.loads((job.folder / 'meta.json').read_text())['counts']
  for split, count in counts.items():
    job.images(split).publish(count)
  shutil.rmtree(job.folder / 'parts', ignore_errors=True)
  for left in job.folder.rglob('.*.tmp'):  # of writers that were killed
    left.unlink()
  (job.folder / 'job.json').unlink(missing_ok=True)
  job.folder.rename(path)


def _unreadable_rows(job: Job, split: str) -> dict[int, str]:
  """Unreadable rows, and why."""
  result: dict[int, str] = {}
  for part in job.parts(split):
    record = job.record(part)
    result |= dict(zip(record['bad_rows'].tolist(), record['reasons'].tolist(), strict=True))
  return result


def _unreadable_error(job: Job, bad: dict[str, dict[int, str]]) -> UserError:
  """The error that lists unreadable images, which a rerun reads again, for they may be repaired."""
  for split, reasons in bad.items():
    for part in job.parts(split):
      if any(part.start <= row < part.stop for row in reasons):
        job.record_file(part).unlink()
  lines = [reasons[row] for reasons in bad.values() for row in sorted(reasons)]
  listing = job.folder.with_suffix('.unreadable.txt')
  listing.write_text('\n'.join(lines) + '\n', errors='surrogateescape')
  named = '; '.join(lines[:NAMED_IN_MESSAGE])
  more = f' and {len(lines) - NAMED_IN_MESSAGE} more' if len(lines) > NAMED_IN_MESSAGE else ''
  return UserError(
    f'{len(lines)} unreadable image(s), listed in {listing}: {named}{more}. Repair them, or leave '
    'them out with --config.data.unreadable=skip; finished parts are kept'
  )


def _check_classes(job: Job, split: str, bad: Container[int]) -> None:
  """Raises UserError if a class of a folder loses all its images to leaving out unreadable ones."""
  before = getattr(getattr(job.source, split), 'labels', None)
  if before is None or not bad:
    return
  indices = enumerate(job.indices[split].tolist())
  after = {before[index] for row, index in indices if row not in bad}
  for label in sorted(set(before) - after):
    raise UserError(
      f'none of the {before.count(label):,} {split} images of class'
      f' {job.source.classes[label]!r} can be read, and data.unreadable=skip would leave the class'
      ' out: repair one, or remove its folder'
    )


def _merge_rows(job: Job, split: str, count: int, bad: list[int]) -> dict[str, Any]:
  """Fills the holes that `bad` rows leave; writes labels and source indices; returns checksums."""
  records = [job.record(part) for part in job.parts(split)]
  labels = np.concatenate([record['labels'] for record in records])
  indices = job.indices[split].copy()
  holes = [row for row in bad if row < count]
  fillers = sorted(set(range(count, len(labels))) - set(bad))
  moves = list(zip(holes, fillers, strict=True))
  for hole, filler in moves:
    labels[hole], indices[hole] = labels[filler], indices[filler]
  checksums = job.images(split).merge(job.parts(split), records, count, moves)
  arrays = {'labels': labels[:count], 'source_index': indices[:count]}
  for name, values in arrays.items():
    _write_array(job.folder / split / f'{name}.npy', values)
  checksums['labels.npy'] = zlib.crc32((job.folder / split / 'labels.npy').read_bytes())
  return {f'{split}/{name}': value for name, value in checksums.items()}


def _write_array(path: pathlib.Path, values: np.ndarray) -> None:
  with files.replacing(path) as file:
    np.save(file, values, allow_pickle=False)
