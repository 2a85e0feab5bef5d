"""Why does the loss stay at ln(classes)? Two checks of a config before, or instead of, a run.

  python -m alexnet_jax.diagnose --config=configs/imagenet.py:paper
  python -m alexnet_jax.diagnose --config=configs/imagenet.py --images=FOLDER --overfit_steps=0
  python -m alexnet_jax.diagnose --config=configs/digits.py --json=digits.json

First, the statistics of every layer's output at initialization, down to how much the logits differ
between images. Then training on a single batch, which a net that can learn at all overfits: the
verdict is `learned`, `plateau`, `unfinished` or `diverged`. Both use the config's own images, or
generated ones if its TFDS data set is not prepared.
"""

import sys

from absl import flags

from alexnet_jax import cli
from alexnet_jax.runtime.jax_setup import set_up_jax

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
flags.DEFINE_integer('batch_size', 16, 'Number of images.', lower_bound=2)
flags.DEFINE_integer(
  'overfit_steps', 100, 'Most steps on the single batch; 0 skips that check.', lower_bound=0
)
flags.DEFINE_string('images', None, "Folder of images to use in place of the config's.")
flags.DEFINE_string('json', None, 'File for the results.')


def main() -> None:
  config, name = cli.read_config()
  set_up_jax()
  from alexnet_jax.train import diagnosis  # after the flags: help and typos need no jax
  from alexnet_jax.weights.initial import weights_of

  diagnosis.diagnose(config, name, weights_of(config), flags.FLAGS, cli.command_line())


if __name__ == '__main__':
  sys.exit(cli.run(main))
