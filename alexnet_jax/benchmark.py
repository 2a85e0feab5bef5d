"""Measures speed, taking turns with what it is compared with.

  python -m alexnet_jax.benchmark                                  # everything
  python -m alexnet_jax.benchmark feed --json=feed.json
  python -m alexnet_jax.benchmark step --config=configs/imagenet.py --batch_sizes=32,128
  python -m alexnet_jax.benchmark step --config=configs/imagenet.py --peers= --profile=traces
  python -m alexnet_jax.benchmark step --python=~/venv/3.13/bin/python

step: a training step, uint8 images to updated weights, against the same net in PyTorch and in each
--python, after loss and gradients were checked to be equal; and its utilization of the device.
loop: training steps with data loading, against the step alone.
feed: --num_images (0.2 MB each) stored 256x256 images, in batches to memory.
checkpoint: how long a save blocks the training loop, and how long it and a restore take.
compile: a training step compiled for --topology (TPUs or GPUs) by their compiler, which needs none:
memory, collectives, and by layer its estimate of cycles, of GPUs bytes and products.
all: all of these, which is also what no word means; compile only if libtpu is installed.

Without --config they take configs/imagenet.py, step configs/cifar10.py too, compile that and
imagenet.py:owt as well, in bfloat16.  Contestants take turns, each in a process of its own.
Goals, and how each is measured: docs/performance.md.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
from absl import flags

from alexnet_jax import cli, config_files, files
from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import did_you_mean

if TYPE_CHECKING:  # it imports JAX, which help and typos do not need
  from alexnet_jax.benchmarks.race import Result

_BENCHMARKS = ('step', 'loop', 'feed', 'checkpoint', 'compile')
# What is measured without --config: file and batch size, None for the config's own.
_IMAGENET = 'configs/imagenet.py'
_DEFAULTS = {
  'step': (('configs/cifar10.py:18pct', 128), (_IMAGENET, 32)),
  'loop': ((_IMAGENET, None),),
  'checkpoint': ((_IMAGENET, 32),),
  'compile': ((_IMAGENET, 1024), (f'{_IMAGENET}:owt', 1024), ('configs/cifar10.py:18pct', 1024)),
}

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', [], "Images of a step, such as 32,128; if not given the config's own."
)
_PEERS = flags.DEFINE_list(
  'peers', None, 'What to compare with, such as eager,compiled; all if not given, none if empty.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 9, 'Turns of each contestant, or saves of checkpoint.', lower_bound=1
)
_TURN_SECONDS = flags.DEFINE_float(
  'turn_seconds', 2.0, 'About how long a turn lasts.', lower_bound=0.0
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 8192, 'How many images to feed.', lower_bound=10)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x4', 'TPUs or GPUs for the compile benchmark.')
_TOPOLOGY_TIMEOUT = flags.DEFINE_float(
  'topology_timeout', 1200.0, 'Seconds that a compilation for --topology may take.', lower_bound=1.0
)
_JSON = flags.DEFINE_string('json', None, 'File for all numbers, every turn included.')
_PYTHON = flags.DEFINE_multi_string(
  'python', [], 'Another interpreter to run our training step in too; may be repeated.'
)
_PROFILE = flags.DEFINE_string(
  'profile', None, 'Folder for traces of a few training steps, for xprof or Perfetto.'
)


def main(words: list[str]) -> None:
  benchmarks = _benchmarks(words)
  for name, value in (('profile', _PROFILE.value), ('python', ','.join(_PYTHON.value))):
    if value and 'step' not in benchmarks:
      raise UserError(f'--{name}={value} is only used by step: add the word step')
  finished = []
  for result in _measure(benchmarks):
    print(result.table(), end='\n\n', flush=True)
    finished.append(result)
  if _JSON.value:
    results = [dataclasses.asdict(result) for result in finished]
    with files.one_line_error(f'--json={_JSON.value}'):
      files.write_json(_JSON.value, {'command': cli.command_line(), 'results': results})


def _benchmarks(words: list[str]) -> list[str]:
  _check_words('', words, (*_BENCHMARKS, 'all'))
  if words and 'all' not in words:
    return [benchmark for benchmark in _BENCHMARKS if benchmark in words]
  if importlib.util.find_spec('libtpu'):
    return list(_BENCHMARKS)
  print("compile is left out: it needs the TPU's compiler: pip install 'jax[tpu]'", file=sys.stderr)
  return [benchmark for benchmark in _BENCHMARKS if benchmark != 'compile']


def _measure(benchmarks: list[str]) -> Iterator['Result']:
  """Yields a result for each benchmark and config."""
  from alexnet_jax.benchmarks import (
    race,
    time_checkpoint,
    time_feed,
    time_loop,
    time_step,
    topology,
  )

  known = time_step.PEERS | time_loop.PEERS | time_feed.PEERS
  _check_words('--peers: ', _PEERS.value or (), tuple(known))
  of_configs = {
    'step': time_step.measure_step,
    'loop': time_loop.measure_loop,
    'checkpoint': time_checkpoint.measure_checkpoint,
    'compile': topology.estimate_step,
  }
  options = race.Options(
    rounds=_ROUNDS.value,
    turn_seconds=_TURN_SECONDS.value,
    peers=_PEERS.value,
    pythons=_PYTHON.value,
    profile=Path(_PROFILE.value) if _PROFILE.value else None,
    num_images=_NUM_IMAGES.value,
    topology=_TOPOLOGY.value,
    topology_timeout=_TOPOLOGY_TIMEOUT.value,
  )
  for benchmark in benchmarks:
    if benchmark == 'feed':
      yield time_feed.measure_feed(options)
    else:
      for name, config in _configs(benchmark):
        yield of_configs[benchmark](name, config, options)


def _configs(benchmark: str) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Names and configs to take training steps of, one for each batch size."""
  chosen = []
  if flags.FLAGS.config is None:
    for filename, batch_size in _DEFAULTS[benchmark]:
      config, _ = config_files.parse([f'--config={filename}'])
      config.batch_size = batch_size or config.batch_size
      if benchmark == 'loop':
        config.data.source = 'synthetic'
      if benchmark == 'compile':
        config.model.compute_dtype = 'bfloat16'
      chosen.append((cli.run_name(filename, config.data.source), config))
  else:
    config, name = cli.read_config()
    chosen.append((name, config))
  try:
    sizes = [int(size) for size in _BATCH_SIZES.value]
  except ValueError:
    raise UserError(
      f'--batch_sizes={",".join(_BATCH_SIZES.value)}: must be whole numbers, such as 32,128'
    ) from None
  result = []
  for name, config in chosen:
    for size in sizes or [config.batch_size]:
      copy = config.copy_and_resolve_references()
      copy.batch_size = size
      configs.validate(copy)
      result.append((name, copy))
  return result


def _check_words(what: str, words: Sequence[str], allowed: tuple[str, ...]) -> None:
  for word in words:
    if word not in allowed:
      hint = did_you_mean(word, allowed) or f'choose from {", ".join(allowed)}'
      raise UserError(f'{what}{word!r} is not known: {hint}')


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True))
