"""The feed benchmark: batches of stored uint8 images from a file in the page cache to memory."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np

from alexnet_jax.benchmarks.contestants import Workload
from alexnet_jax.benchmarks.rounds import OURS, Options, Result, start, take_turns
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.data.feed import train_batches
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.cores import usable_cores
from alexnet_jax.runtime.cpu import prepare_process
from alexnet_jax.terminal import si

BATCH_SIZE = 128
IMAGE_SIZE = 256
GOAL = 40_000  # images per core-second

_MODULE = 'alexnet_jax.benchmarks.time_feed'
_OURS = Contestant(OURS, f'{_MODULE}:OurFeed')
PEERS = {
  'tf_data': Contestant(
    'tf.data',
    f'{_MODULE}:TfDataFeed',
    {'TF_CPP_MIN_LOG_LEVEL': '3'},
    package='tensorflow',
    extra='prepare',
  ),
  'data_loader': Contestant('torch DataLoader', f'{_MODULE}:DataLoaderFeed', package='torch'),
}


def compare(images: int, options: Options) -> Result:
  """Measures the feed on a file of so many generated images in a temporary folder.

  Raises:
    UserError: the disk is too full.
  """
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='alexnet_jax-feed-'))
    file = Path(folder) / 'images.npy'
    write_images(file, images)
    workers, absent = start({OURS: _OURS} | options.wanted(PEERS), stack, file=file)
    turns = take_turns(workers, options, 'per_core_second')
    environment = workers[OURS].call('environment')
  return Result(
    target='feed',
    title=f'{images:,} stored images of {IMAGE_SIZE}x{IMAGE_SIZE}, batch {BATCH_SIZE}, file in'
    ' the page cache',
    lines=(*turns.lines(BATCH_SIZE), f'goal: {GOAL:,} images/core-s'),
    environment=environment,
    details={'images': images},
    contestants=turns.contestants(),
    absent=absent,
  )


def write_images(file: Path, images: int) -> None:
  """Writes `images` noise images as the store lays them out; they stay in the page cache."""
  shape = (images, IMAGE_SIZE, IMAGE_SIZE, 3)
  free, needed = shutil.disk_usage(file.parent).free, int(np.prod(shape))
  if needed > 0.9 * free:
    raise UserError(
      f'--images={images} need {si(needed, "B")} in {file.parent.parent}, which has'
      f' {si(free, "B")} free: use fewer, or set TMPDIR'
    )
  pixels = np.lib.format.open_memmap(file, 'w+', np.uint8, shape)
  random = np.random.default_rng(0)
  for first in range(0, images, BATCH_SIZE):
    block = pixels[first : first + BATCH_SIZE]
    block[:] = np.frombuffer(random.bytes(block.nbytes), np.uint8).reshape(block.shape)
  pixels.flush()  # else the disk would be busy while we measure


class OurFeed(Workload):
  """Batches in the order of training, from the first thread's start to the last one's end."""

  def __init__(self, file: Path):
    prepare_process()  # as every command that feeds does
    pixels = np.load(file, mmap_mode='r', allow_pickle=False)
    self._split = Split(pixels, np.zeros(len(pixels), np.int32), file, pixels.offset)
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
    self._version = tf.__version__

  def versions(self) -> dict:
    return {'tensorflow': self._version}

  def run(self, batches: int) -> int:
    for _ in range(batches):
      next(self._batches)
    return batches * BATCH_SIZE


class DataLoaderFeed(Workload):
  """torch's DataLoader with a worker a core, over a data set that copies a row at a time.

  The workers live for a turn, so that what they used of the cores is known at its end.
  """

  def __init__(self, file: Path):
    import torch
    import torch.utils.data

    self._torch = torch
    self._rows = _Rows(file)
    self._random = np.random.default_rng(0)

  def versions(self) -> dict:
    return {'torch': self._torch.__version__}

  def run(self, batches: int) -> int:
    rows = self._random.integers(0, len(self._rows), batches * BATCH_SIZE).tolist()
    loader = self._torch.utils.data.DataLoader(
      self._rows, BATCH_SIZE, sampler=rows, num_workers=usable_cores()
    )
    return sum(len(batch) for batch in loader)


class _Rows:
  """A map-style data set."""

  def __init__(self, file: Path):
    self._pixels = np.load(file, mmap_mode='r', allow_pickle=False)

  def __len__(self) -> int:
    return len(self._pixels)

  def __getitem__(self, row: int) -> np.ndarray:
    return np.array(self._pixels[row])
