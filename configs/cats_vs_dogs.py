"""Cats against dogs: a 227-pixel AlexNet with batch normalization in place of LRN, two classes.

  python -m alexnet_jax.main --config=configs/cats_vs_dogs.py
  python -m alexnet_jax.main --config=configs/cats_vs_dogs.py --config.data.source=folder \\
    --config.data.dir=DIR

TFDS's cats_vs_dogs, the last fifth held out; or DIR, where Kaggle's dogs-vs-cats is unpacked
(train/cat.0.jpg and so on), a fifth of each class held out by the names of the files.  This is from
scratch; to fine-tune a net that has seen other photos:

  python -m alexnet_jax.main --config=configs/imagenette.py:bn
  python -m alexnet_jax.main --config=configs/finetune.py:DIR --config.weights=runs/imagenette-bn

Not yet measured.
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
