"""The feed benchmark: batches of stored uint8 images from a file in the page cache to memory."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from alexnet_jax.benchmarks.contestants import Workload
from alexnet_jax.benchmarks.rounds import OURS, Options, Result, take_turns
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.data.feed import train_batches
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.cpu import prepare_process
from alexnet_jax.terminal import si

BATCH_SIZE = 128
IMAGE_SIZE = 256
GOAL = 40_000  # images per core-second

_OURS = Contestant(OURS, 'alexnet_jax.benchmarks.time_feed:OurFeed')


def compare(images: int, options: Options) -> Result:
  """Measures the feed on a file of so many generated images in a temporary folder.

  Raises:
    UserError: the disk is too full.
  """
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-feed-') as folder:
    file = Path(folder) / 'images.npy'
    write_images(file, images)
    with _OURS.start(file=file) as worker:
      turns = take_turns({OURS: worker}, options, 'per_core_second')
      environment = worker.call('environment')
  return Result(
    target='feed',
    title=f'{images:,} stored images of {IMAGE_SIZE}x{IMAGE_SIZE}, batch {BATCH_SIZE}, file in'
    ' the page cache',
    lines=(*turns.lines(BATCH_SIZE), f'goal: {GOAL:,} images/core-s'),
    environment=environment,
    details={'images': images},
    contestants=turns.contestants(),
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
