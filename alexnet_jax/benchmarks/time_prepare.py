"""The prepare benchmark: image files to a finished store."""

import shutil
import tempfile
from pathlib import Path

from alexnet_jax.benchmarks.race import OURS, Options, Result, race, speed_table
from alexnet_jax.benchmarks.worker import Contestant
from alexnet_jax.benchmarks.workload import Workload
from alexnet_jax.config import default
from alexnet_jax.data.preparation import prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.environment import usable_cores
from alexnet_jax.terminal import Console

IMAGE_SIZE = 256
IMAGENET_IMAGES = 1_281_167 + 50_000
GOAL_CORE_HOURS = 1.3

_OURS = Contestant(OURS, 'alexnet_jax.benchmarks.time_prepare:Preparation')


def measure_prepare(options: Options) -> Result:
  """Measures how fast image files become a raw store, on all cores.

  Raises:
    UserError: `options.images` has no files; generated images are not like photos, so there is no
      default.
  """
  count = options.num_images or 2000
  folder = options.images or ''
  files = sorted(path for path in Path(folder).rglob('*') if path.is_file()) if folder else []
  if not files:
    raise UserError(f'--images={folder}: give a folder of photos, such as some of ImageNet')
  with tempfile.TemporaryDirectory(prefix='alexnet_jax-prepare-') as temporary:
    place = Path(temporary)
    for number in range(count):
      file = files[number % len(files)]
      link = place / 'images' / f'class{number % 2}' / f'{number:06}{file.suffix}'
      link.parent.mkdir(parents=True, exist_ok=True)
      link.symlink_to(file.resolve())
    raced = race({OURS: _OURS}, options, 'per_core_second', folder=place)
  contestants = raced['contestants']
  hours = IMAGENET_IMAGES / contestants[OURS]['per_core_second']['median'] / 3600
  return Result(
    target='prepare',
    title=f'{count:,} images ({len(files)} different) to {IMAGE_SIZE}x{IMAGE_SIZE},'
    f' {usable_cores()} processes',
    lines=(
      *speed_table(contestants, count, 'per_core_second'),
      f"all of ImageNet's {IMAGENET_IMAGES:,} images at this rate: {hours:.2f} core-hours"
      f' (goal: {GOAL_CORE_HOURS})',
    ),
    details={'images': count, 'different': len(files)},
    **raced,
  )


class Preparation(Workload):
  """Finding, decoding, resizing, cropping, statistics, checksums, writing, publishing."""

  def __init__(self, folder: Path):
    self._config = default().data
    self._config.source = 'folder'
    self._config.dir = str(folder / 'images')
    self._config.store = str(folder / 'store')
    self._config.image_size = IMAGE_SIZE

  def run(self, batches: int) -> int:
    images = 0
    for _ in range(batches):
      made = prepare_store(self._config, progress=Console(quiet=True), workers=usable_cores())
      images += len(made.train) + len(made.eval)
      shutil.rmtree(self._config.store)
    return images
