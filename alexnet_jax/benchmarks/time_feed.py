"""The feed benchmark: batches of stored uint8 images, from a file in the page cache to memory."""

import functools
import os
import tempfile
from pathlib import Path

import numpy as np

from alexnet_jax.benchmarks.race import OURS, Options, Result, race, speed_table
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.benchmarks.workload import Workload
from alexnet_jax.data.feed import train_batches
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import cpu
from alexnet_jax.runtime.environment import usable_cores

BATCH_SIZE = 128
IMAGE_SIZE = 256
GOAL = 40_000  # images per core-second

_MODULE = 'alexnet_jax.benchmarks.time_feed'
_OURS = Contestant(OURS, f'{_MODULE}:OurFeed')
PEERS = {
  'tf_data': Contestant('tf.data', f'{_MODULE}:TfDataFeed', {'TF_CPP_MIN_LOG_LEVEL': '3'}),
  'data_loader': Contestant('torch DataLoader', f'{_MODULE}:DataLoaderFeed'),
}


def measure_feed(options: Options) -> Result:
  """Measures the feed on a file of generated images.

  Raises:
    UserError: the disk is too full.
  """
  images = options.num_images
  shape = (images, IMAGE_SIZE, IMAGE_SIZE, 3)
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-feed-') as folder:
    file = Path(folder) / 'images.npy'
    try:
      np.save(file, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
      os.sync()  # else the disk would be busy while we measure
    except OSError as error:
      raise UserError(
        f'--num_images={images} cannot be written to {folder} ({error.strerror}): use fewer, or set'
        ' TMPDIR'
      ) from None
    peers = {OURS: _OURS} | options.wanted(PEERS)
    raced = race(peers, options, 'per_core_second', file=file)
  return Result(
    target='feed',
    title=f'{images:,} stored images of {IMAGE_SIZE}x{IMAGE_SIZE}, batch {BATCH_SIZE}, file in'
    ' the page cache',
    lines=(
      *speed_table(raced['contestants'], BATCH_SIZE, 'per_core_second'),
      f'goal: {GOAL:,} images/core-s',
    ),
    details={'images': images},
    **raced,
  )


class OurFeed(Workload):
  """Batches in the order of training; starting and ending the threads is timed too."""

  def __init__(self, file: Path):
    cpu.configure()  # as every command that feeds does
    pixels = np.load(file, mmap_mode='r', allow_pickle=False)
    self._split = Split(pixels, np.zeros(len(pixels), np.int32))
    self._step = 0

  def run(self, batches: int) -> int:
    feed = train_batches(self._split, seed=0, start_step=self._step, batch_size=BATCH_SIZE)
    with feed:
      for _ in range(batches):
        next(feed)
    self._step += batches
    return batches * BATCH_SIZE


class TfDataFeed(Workload):
  """tf.data over fixed-length records: shuffled in a window, decoded a batch at a time."""

  def __init__(self, file: Path):
    import tensorflow as tf

    pixels = np.load(file, mmap_mode='r', allow_pickle=False)
    records = tf.data.FixedLengthRecordDataset(
      str(file), record_bytes=pixels[0].nbytes, header_bytes=pixels.offset
    )

    def decode(batch):
      return tf.reshape(tf.io.decode_raw(batch, tf.uint8), (BATCH_SIZE, *pixels.shape[1:]))

    self._batches = iter(
      records.repeat()
      .shuffle(8 * BATCH_SIZE)
      .batch(BATCH_SIZE, drop_remainder=True)
      .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
      .prefetch(tf.data.AUTOTUNE)
    )

  def run(self, batches: int) -> int:
    for _ in range(batches):
      next(self._batches)
    return batches * BATCH_SIZE


class DataLoaderFeed(Workload):
  """torch's DataLoader with a worker per core, over rows of the file.

  Workers end with the turn, because CPU time is known of ended processes only.
  """

  def __init__(self, file: Path):
    from torch.utils.data import DataLoader

    # Mode 'c', because torch warns of arrays that are not writable.
    self._pixels = np.load(file, mmap_mode='c', allow_pickle=False)
    self._random = np.random.default_rng(0)
    self._loader = functools.partial(DataLoader, batch_size=BATCH_SIZE, num_workers=usable_cores())

  def run(self, batches: int) -> int:
    rows = self._random.integers(0, len(self._pixels), batches * BATCH_SIZE).tolist()
    return sum(len(batch) for batch in self._loader(self._pixels, sampler=rows))
