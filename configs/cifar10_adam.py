"""The 224-pixel net on CIFAR-10 enlarged from 32 pixels, with Adam: 65.5 % accuracy in a write-up.

  python -m alexnet_jax.main --config=configs/cifar10_adam.py

Adam 5e-5, batch 64, 18 epochs.  Not run: it needs a GPU (hours of a 2-core CPU an epoch).
"""

from alexnet_jax.config import default


def get_config():
  config = default()
  config.data.name = 'cifar10'
  config.data.num_classes = 10
  config.data.image_size = 32
  config.data.eval_split = 'test'
  config.input.resize_to = 224
  config.input.crop = 224
  config.input.random_crop = False
  config.input.random_flip = False
  config.input.color_noise = 0.0
  config.batch_size = 64
  config.epochs = 18.0
  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 5e-5
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule.kind = 'constant'
  return config
