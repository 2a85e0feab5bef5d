"""Prepares the store of a config's images: decoded, resized and memory-mapped, with statistics.

  python -m alexnet_jax.prepare --config=configs/imagenet.py
  python -m alexnet_jax.prepare --config=configs/imagenet.py --verify

Training does the same on first use.  A run that was killed goes on where it was; the store is the
same to the byte for any number of workers.  `python -m alexnet_jax.main --config=... --dry_run`
says what is there and what is missing, and changes nothing.
"""

import sys

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_WORKERS = flags.DEFINE_integer(
  'workers', 0, 'Processes that decode; 0: one per core.', lower_bound=0
)
_VERIFY = flags.DEFINE_bool('verify', False, 'Read everything again and compare checksums.')


def main() -> None:
  from alexnet_jax.data import preparation, store
  from alexnet_jax.terminal import Console

  config, _ = cli.read_config()
  if config.data.source in preparation.IN_MEMORY:
    raise UserError(
      f'config.data.source={config.data.source} is made in memory: there is nothing to prepare'
    )
  progress = Console()
  prepared = preparation.prepare_store(config.data, progress=progress, workers=_WORKERS.value)
  if _VERIFY.value and prepared.path is not None:
    store.verify_store(prepared.path, progress)
  red, green, blue = prepared.mean_image.mean((0, 1))
  stdevs = ', '.join(f'{value:.4f}' for value in prepared.color_stdevs)
  print(
    f'{prepared.path}: {len(prepared.train):,} training and {len(prepared.eval):,} validation'
    f' images of {len(prepared.classes):,} classes{", verified" * _VERIFY.value}\n'
    f'mean RGB {red:.3f}, {green:.3f}, {blue:.3f} (ILSVRC-2012: 127.305, 119.715, 104.913)\n'
    f'RGB components, standard deviations {stdevs} (ILSVRC-2012: 19.7208, 37.0939, 121.7801)'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
