"""Imagenette (full-size-v2): ten easy classes of ImageNet, 9,469 + 3,925 images, 24 epochs.

  python -m alexnet_jax.main --config=configs/imagenette.py
  python -m alexnet_jax.main --config=configs/imagenette.py:VARIANT

`--config.data.source=folder --config.data.dir=DIR` reads a folder with train/<class>/ and
val/<class>/, as in the archive that fast.ai publishes.
Variants, each that of configs/imagenet.py with ten classes and its schedule in proportion:

  krizhevsky2012  (default) layers-145.cfg, with the hand-made schedule of 91 epochs
  one_tower       the one-GPU net, with the same schedule
  bn              batch normalization after the pools, with one falling curve
  owt             torchvision's net and recipe
  modern          #145's net with cosine, label smoothing and averaged weights

Not yet measured.
"""

from alexnet_jax.config import default

EPOCHS = 24.0


def get_config(variant: str = 'krizhevsky2012'):
  config = default()
  config.data.name = 'imagenette/full-size-v2'
  config.data.num_classes = 10
  config.epochs = EPOCHS
  config.eval.final_views = 10
  variants = {
    'krizhevsky2012': _krizhevsky2012,
    'one_tower': _one_tower,
    'bn': _bn,
    'owt': _owt,
    'modern': _modern,
  }
  if variant not in variants:
    raise ValueError(
      f'configs/imagenette.py has no variant {variant!r}: choose one of {", ".join(variants)}'
    )
  variants[variant](config)
  return config


def _krizhevsky2012(config):
  """CHM layer-params-145.cfg: drops at 25, 51 and 79 of 91 epochs, conv1 slowed and then frozen."""
  part = EPOCHS / 91
  config.model.net = 'krizhevsky2012'
  config.optimizer.schedule.milestones = (25 * part, 51 * part, 79 * part)
  config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_lr_factors = {
    'conv1/kernel': ((67 * part, 0.1),),
    'conv1': ((72 * part, 0.0),),
  }
  config.input.color_noise_epochs = 67 * part


def _one_tower(config):
  _krizhevsky2012(config)
  config.model.net = 'one_tower'


def _bn(config):
  """As imagenet.py:bn, at batch 128 with its rate of .08 per 512 images scaled linearly."""
  config.model.net = 'bn_after_pool'
  config.input.crop = 227
  config.input.scale = 1 / 256
  config.input.color_noise = 0.0
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.decay_biases = True
  config.optimizer.learning_rate = 0.08
  config.optimizer.base_batch_size = 512
  config.optimizer.schedule.kind = 'polynomial'
  config.optimizer.schedule.power = 2.0


def _owt(config):
  """As imagenet.py:owt, at batch 128 with its rate of .01 per 256 images scaled linearly."""
  config.model.net = 'owt'
  config.input.normalization = 'torchvision'
  config.input.color_noise = 0.0
  config.optimizer.base_batch_size = 256
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_biases = True
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.schedule.milestones = (EPOCHS / 3, EPOCHS * 2 / 3)
  config.eval.final_views = 1


def _modern(config):
  """As imagenet.py:modern in float32; the average of weights spans 500 of 1,776 steps."""
  config.label_smoothing = 0.1
  config.ema_decay = 0.998
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.schedule.kind = 'cosine'
