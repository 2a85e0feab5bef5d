"""Measures how fast this is, in the same run as what it is compared with.

  python -m alexnet_jax.benchmark                                  # everything
  python -m alexnet_jax.benchmark feed --json=time_feed.json
  python -m alexnet_jax.benchmark step --config=configs/imagenet.py --batch_sizes=32,128
  python -m alexnet_jax.benchmark step --config=configs/imagenet.py --peers= --profile=traces
  python -m alexnet_jax.benchmark step --python=~/venv/3.13/bin/python

step: a training step of configs/cifar10.py:18pct (batch 128) and of configs/imagenet.py (batch 32),
or of --config, from uint8 images to updated weights, against the same net in PyTorch, which is
handed its views ready made, and in each --python.  Loss and gradients are first shown to be equal.
Beside the speed stand the shares of what the device can compute and move.
loop: steps fed from the store of a config, against the step alone; with --config or, if not given,
on generated images of configs/imagenet.py.
feed: batches of stored 256x256 images, against tf.data and torch's DataLoader on the same file.
checkpoint: how long a save holds training up, and how long it and a restore take; of the state of
configs/imagenet.py or --config.
startup: from the command to the first finished step, without and with programs compiled before; of
configs/digits.py, configs/cifar10.py:18pct and configs/imagenet.py, or of --config.
communication: bytes that a device sends in a step, counted in the program compiled for 8 virtual
devices and by formula up to 1,024, with and without --config.model.shard_dense, and the batch up to
which that pays; of configs/imagenet.py or --config.  Nothing is timed.
prepare: the photos of --photos to a finished store, against FFCV's writer; all cores.
all: all of these, which is also what no word means; prepare only if there are photos.

Each side runs in a process of its own with the memory allocator's setting that suits it; they take
turns, so that only one computes at a time.  Goals, and how each is measured: docs/performance.md.
"""

import itertools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_collections
from absl import flags

from alexnet_jax import cli, config_files
from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.cores import usable_cores
from alexnet_jax.terminal import did_you_mean

_TARGETS = ('step', 'loop', 'feed', 'checkpoint', 'startup', 'communication', 'prepare')
# What is measured without --config: file and batch size, None for the config's own.
_DEFAULTS = {
  'step': (('configs/cifar10.py:18pct', 128), ('configs/imagenet.py', 32)),
  'loop': (('configs/imagenet.py', 128),),
  'checkpoint': (('configs/imagenet.py', 32),),
  'startup': (
    ('configs/digits.py', None),
    ('configs/cifar10.py:18pct', None),
    ('configs/imagenet.py', None),
  ),
  'communication': (('configs/imagenet.py', 32),),
}
_ROUNDS_EACH = {'startup': 3}

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', None, "Images of a step, such as 32,128; if not given the config's own."
)
_PEERS = flags.DEFINE_list(
  'peers', None, 'Whom to compare with, such as eager,compiled; all if not given, none if empty.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  'Turns of each side, saves, or starts; 9 if not given, and 3 starts.',
  lower_bound=1,
)
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
  'workers', usable_cores(), 'Processes of the prepare benchmark.', lower_bound=1
)
_JSON = flags.DEFINE_string('json', None, 'File for all numbers, every turn included.')
_PYTHON = flags.DEFINE_multi_string(
  'python', [], 'Another interpreter to take our training step in too; may be repeated.'
)
_PROFILE = flags.DEFINE_string(
  'profile', None, 'Folder for traces of a few training steps, for xprof or Perfetto.'
)


def main(words: list[str]) -> None:
  targets = _targets(words)
  for name, value in (('profile', _PROFILE.value), ('python', ','.join(_PYTHON.value))):
    if value and 'step' not in targets:
      raise UserError(f'--{name}={value} is of training steps: add the word step')
  finished = []
  for result in _measure(targets):
    print(result.table(), end='\n\n', flush=True)
    finished.append(result)
  record = {'command': cli.command_line(), 'results': [result.to_json() for result in finished]}
  if _JSON.value:
    _write(Path(_JSON.value), record)
  for result in finished:
    if (absent := getattr(result, 'absent', None)) and len(result.sides) == 1:
      raise UserError(
        f'{result.target}: measured alone, nothing to compare with: {next(iter(absent.values()))}'
      )


def _targets(words: list[str]) -> tuple[str, ...]:
  _check_words('', words, (*_TARGETS, 'all'))
  if words and 'all' not in words:
    return tuple(target for target in _TARGETS if target in words)
  if not _PHOTOS.value:
    print('prepare is not measured: it needs --photos=FOLDER', file=sys.stderr)
  return tuple(target for target in _TARGETS if target != 'prepare' or _PHOTOS.value)


def _measure(targets: tuple[str, ...]) -> Iterator:
  """Yields a Comparison or Figures for each target and config."""
  from alexnet_jax.benchmarks import (
    compiled,
    time_checkpoint,
    time_feed,
    time_loop,
    time_prepare,
    time_startup,
    time_step,
  )
  from alexnet_jax.benchmarks.rounds import Options

  peers = None if _PEERS.value is None else tuple(_PEERS.value)
  if peers:
    sides = (
      time_step.PEERS,
      time_step.GPU_PEERS,
      time_loop.PEERS,
      time_feed.PEERS,
      time_prepare.PEERS,
    )
    _check_words('--peers: ', peers, tuple(itertools.chain(*sides)))
  profile = Path(_PROFILE.value) if _PROFILE.value else None
  of_configs = {
    'step': time_step,
    'loop': time_loop,
    'checkpoint': time_checkpoint,
    'startup': time_startup,
    'communication': compiled,
  }
  for target in targets:
    rounds = _ROUNDS.value or _ROUNDS_EACH.get(target, 9)
    options = Options(rounds, _TURN_SECONDS.value, peers, tuple(_PYTHON.value), profile)
    if target in of_configs:
      for name, config in _configs(target):
        yield of_configs[target].compare(name, config, options)
    if target == 'feed':
      yield time_feed.compare(_FEED_IMAGES.value, options)
    if target == 'prepare':
      photos = Path(_PHOTOS.value) if _PHOTOS.value else None
      yield time_prepare.compare(photos, _PREPARE_IMAGES.value, _WORKERS.value, options)


def _configs(target: str) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Names and configs to take training steps of, one for each batch size."""
  if flags.FLAGS.config is None:
    chosen = [_default(target, *default) for default in _DEFAULTS[target]]
  else:
    config, name = cli.read_config()
    chosen = [(name, config)]
  result = []
  for name, config in chosen:
    for size in _batch_sizes() or [config.batch_size]:
      copy = config.copy_and_resolve_references()
      copy.batch_size = size
      configs.validate(copy)
      result.append((name, copy))
  return result


def _default(target: str, filename: str, batch_size: int | None):
  path, _, variant = config_files.find(filename).partition(':')
  config = runpy.run_path(path)['get_config'](*filter(None, [variant]))
  config.batch_size = batch_size or config.batch_size
  if target == 'loop':
    config.data.source = 'synthetic'
  return cli.experiment_name(filename, config.data.source), config


def _batch_sizes() -> list[int]:
  try:
    return [int(size) for size in _BATCH_SIZES.value or []]
  except ValueError:
    raise UserError(
      f'--batch_sizes={",".join(_BATCH_SIZES.value)}: must be whole numbers, such as 32,128'
    ) from None


def _check_words(what: str, words: list[str], allowed: tuple[str, ...]) -> None:
  for word in words:
    if word not in allowed:
      hint = did_you_mean(word, allowed) or f'choose from {", ".join(allowed)}'
      raise UserError(f'{what}{word!r} is not known: {hint}')


def _write(path: Path, record: dict) -> None:
  from alexnet_jax import files

  try:
    files.write_json(path, record)
  except OSError as error:
    raise UserError(
      f'--json={path} cannot be written ({error.strerror}): choose another file'
    ) from None


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True))
