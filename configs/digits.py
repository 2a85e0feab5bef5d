"""A small AlexNet on scikit-learn's 1,797 handwritten digits: a minute on a laptop, no download.

  python -m alexnet_jax.main --config=configs/digits.py

Expected: at most 1.5 % top-1 error on the 359 validation digits (see docs/results.md).
"""

from alexnet_jax.config import default


def get_config():
  config = default()
  config.data.source = 'digits'
  config.data.num_classes = 10
  config.data.image_size = 32
  config.model.net = 'digits'
  config.model.onednn = 'off'  # a run of seconds gains more from programs that are kept on disk
  config.input.crop = 28
  config.input.random_flip = False
  config.input.color_noise = 0.0
  config.input.normalization = 'standardize'
  config.batch_size = 64
  config.epochs = 15.0
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.schedule.kind = 'cosine'
  config.log.every_steps = 20
  return config
