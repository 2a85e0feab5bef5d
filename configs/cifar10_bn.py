"""A batch-norm CNN of 14 layers on CIFAR-10, from a write-up that gives 76.75 % accuracy.

  python -m alexnet_jax.main --config=configs/cifar10_bn.py

SGD at a fixed 0.01 for 50 epochs is given there; batch, dropout, initialization and augmentation
are not.  Chosen here: batch 128, momentum 0.9, keep 0.9 / 0.8 / 0.7 / 0.6 in the dense layers, He
initialization, standardized inputs, mirrored views, no decay.
"""

from alexnet_jax.config import default


def get_config():
  config = default()
  config.data.name = 'cifar10'
  config.data.num_classes = 10
  config.data.image_size = 32
  config.data.eval_split = 'test'
  config.model.net = 'cifar_bn'
  config.input.crop = 32
  config.input.random_crop = False
  config.input.color_noise = 0.0
  config.input.normalization = 'standardize'
  config.eval.batch_size = 500
  config.epochs = 50.0
  config.optimizer.learning_rate = 0.01
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule.kind = 'constant'
  return config
