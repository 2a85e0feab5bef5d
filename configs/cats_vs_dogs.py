"""Cats against dogs: a 227-pixel AlexNet with batch normalization in place of LRN, two classes.

  python -m alexnet_jax.main --config=configs/cats_vs_dogs.py

TFDS's cats_vs_dogs, the last fifth held out.  Not run: the data cannot be fetched by this project.
"""

from alexnet_jax.config import default


def get_config():
  config = default()
  config.data.name = 'cats_vs_dogs'
  config.data.num_classes = 2
  config.data.train_split = 'train[:80%]'
  config.data.eval_split = 'train[80%:]'
  config.data.unreadable = 'skip'
  config.model.net = 'bn'
  config.input.crop = 227
  config.input.normalization = 'mean_pixel'
  config.input.scale = 1 / 256
  config.epochs = 30.0
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.schedule.kind = 'cosine'
  return config
