"""Measures how fast this is, in the same run as what it is compared with.

  python -m alexnet_jax.benchmark                                  # everything
  python -m alexnet_jax.benchmark --what=feed --json=feed.json
  python -m alexnet_jax.benchmark --what=step --config=configs/imagenet.py --batch_sizes=32,128

step: a training step of configs/cifar10.py:18pct (batch 128) and of configs/imagenet.py (batch 32),
or of --config, from uint8 images to updated weights, against the same net in PyTorch, which is
handed its views ready made.  Loss and gradients are first shown to be equal.
loop: steps fed from the store of a config, against the step alone; with --config or, if not given,
on generated images of configs/imagenet.py.
feed: batches of stored 256x256 images, against tf.data and torch's DataLoader on the same file.
prepare: the photos of --photos to a finished store, against FFCV's writer; all cores.

Each side runs in a process of its own with the memory allocator's setting that suits it; they take
turns, so that only one computes at a time.
"""

import difflib
import os
import runpy
import sys
from pathlib import Path

import ml_collections
from absl import flags

from alexnet_jax import command
from alexnet_jax import config as configs
from alexnet_jax.benchmarks import feed, loop, prepare, step
from alexnet_jax.benchmarks.comparison import Comparison, Options, table
from alexnet_jax.errors import UserError
from alexnet_jax.results import files

_PEER_NAMES = (*step.PEERS, *loop.PEERS, *feed.PEERS, *prepare.PEERS)
_TARGETS = ('step', 'loop', 'feed', 'prepare')
# What is measured without --config: file, batch size, and source of the images.
_DEFAULTS = {
  'step': (('configs/cifar10.py:18pct', 128, 'tfds'), ('configs/imagenet.py', 32, 'tfds')),
  'loop': (('configs/imagenet.py', 128, 'synthetic'),),
}

_WHAT = flags.DEFINE_list('what', list(_TARGETS[:3]), f'What to measure: {", ".join(_TARGETS)}.')
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', None, "Images of a step, such as 32,128; if not given the config's own."
)
_PEERS = flags.DEFINE_list(
  'peers',
  None,
  f'Whom to compare with: {", ".join(_PEER_NAMES)}; all if not given, none if empty.',
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of each side.', lower_bound=1)
_TURN_SECONDS = flags.DEFINE_float(
  'turn_seconds', 2.0, 'About how long a turn lasts.', lower_bound=0.0
)
_FEED_IMAGES = flags.DEFINE_integer(
  'feed_images', 8192, 'Images in the file of the feed benchmark, 0.2 MB each.', lower_bound=1
)
_PHOTOS = flags.DEFINE_string('photos', None, 'Folder of photos for the prepare benchmark.')
_PREPARE_IMAGES = flags.DEFINE_integer(
  'prepare_images', 2000, 'Images in the store of the prepare benchmark.', lower_bound=10
)
_WORKERS = flags.DEFINE_integer(
  'workers', os.cpu_count(), 'Processes of the prepare benchmark.', lower_bound=1
)
_JSON = flags.DEFINE_string('json', None, 'File for all numbers, every turn included.')


def main() -> None:
  what = _chosen('what', _WHAT.value, _TARGETS)
  peers = _PEERS.value
  if peers is not None:
    peers = _chosen('peers', peers, _PEER_NAMES)
  options = Options(_ROUNDS.value, _TURN_SECONDS.value, peers)
  finished = []
  for target, compare in (('step', step.compare), ('loop', loop.compare)):
    for name, config in _configs(_DEFAULTS[target]) if target in what else ():
      finished.append(compare(name, config, options))
      print(table(finished[-1]), end='\n\n', flush=True)
  if 'feed' in what:
    finished.append(feed.compare(_FEED_IMAGES.value, options))
    print(table(finished[-1]), end='\n\n', flush=True)
  if 'prepare' in what:
    photos = Path(_PHOTOS.value) if _PHOTOS.value else None
    finished.append(prepare.compare(photos, _PREPARE_IMAGES.value, _WORKERS.value, options))
    print(table(finished[-1]), flush=True)
  if _JSON.value:
    _write(Path(_JSON.value), finished)
  for comparison in finished:
    if comparison.absent and len(comparison.sides) == 1:
      raise UserError(
        f'{comparison.target}: measured alone, nothing to compare with:'
        f' {next(iter(comparison.absent.values()))}'
      )


def _configs(defaults) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Names and configs to take training steps of, one for each batch size."""
  if flags.FLAGS.config is None:
    chosen = [_default(*default) for default in defaults]
  else:
    config, name = command.read_config()
    chosen = [(name, config)]
  result = []
  for name, config in chosen:
    for size in _batch_sizes() or [config.batch_size]:
      copy = config.copy_and_resolve_references()
      copy.batch_size = size
      configs.validate(copy)
      result.append((name, copy))
  return result


def _default(filename: str, batch_size: int, source: str):
  path, _, variant = filename.partition(':')
  if not Path(path).is_file():
    raise UserError(
      f'{path} does not exist: run this in the folder of the project, or give --config'
    )
  config = runpy.run_path(path)['get_config'](*filter(None, [variant]))
  config.batch_size = batch_size
  config.data.source = source
  return command.experiment_name(filename, config.data.source), config


def _batch_sizes() -> list[int]:
  try:
    return [int(size) for size in _BATCH_SIZES.value or []]
  except ValueError:
    raise UserError(
      f'--batch_sizes={",".join(_BATCH_SIZES.value)}: must be whole numbers, such as 32,128'
    ) from None


def _chosen(flag: str, words: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
  for word in words:
    if word not in allowed:
      near = difflib.get_close_matches(word, allowed, 1, 0.5)
      hint = f'did you mean {near[0]}?' if near else f'choose from {", ".join(allowed)}'
      raise UserError(f'--{flag}: {word!r} is not known: {hint}')
  return tuple(words)


def _write(path: Path, finished: list[Comparison]) -> None:
  comparisons = [comparison.to_json() for comparison in finished]
  try:
    files.write_json(path, {'command': command.spoken(), 'comparisons': comparisons})
  except OSError as error:
    raise UserError(
      f'--json={path} cannot be written ({error.strerror}): choose another file'
    ) from None


if __name__ == '__main__':
  sys.exit(command.run(main))
