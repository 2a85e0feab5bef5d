"""Imagenette (full-size-v2): ten easy classes of ImageNet, 9,469 + 3,925 images, 24 epochs.

  python -m alexnet_jax.main --config=configs/imagenette.py
  python -m alexnet_jax.main --config=configs/imagenette.py:VARIANT

`--config.data.source=folder --config.data.dir=DIR` reads a folder with train/<class>/ and
val/<class>/, as in the archive that fast.ai publishes.
Variants, each that of configs/imagenet.py with ten classes and its schedule in proportion, at batch
128 with its rate scaled linearly:

  krizhevsky2012  (default) layers-145.cfg, with the hand-made schedule of 91 epochs
  one_tower       the one-GPU net, with the same schedule
  bn              batch normalization after the pools, with one falling curve
  owt             torchvision's net and recipe
  modern          #145's net with cosine, label smoothing and averaged weights

Measured, seed 0, top-1 / top-5 error with ten views, on 2 cores of an AMD EPYC (Zen 5), photos
re-encoded at 224x224 and enlarged to 256x256 (docs/results.md): krizhevsky2012 24.43 /
2.85 %, in 46 min 46 s; bn 16.56 / 1.78 %.  The other variants are not yet measured.
"""

import runpy

from alexnet_jax.config_files import shipped

VARIANTS = ('krizhevsky2012', 'one_tower', 'bn', 'owt', 'modern')
EPOCHS = 24.0


def get_config(variant: str = 'krizhevsky2012'):
  if variant not in VARIANTS:
    raise ValueError(
      f'configs/imagenette.py has no variant {variant!r}: choose one of {", ".join(VARIANTS)}'
    )
  imagenet = runpy.run_path(str(shipped() / 'imagenet.py'))
  config = imagenet['get_config']('' if variant in ('krizhevsky2012', 'one_tower') else variant)
  if variant == 'one_tower':
    config.model.net = 'one_tower'
  config.data.name = 'imagenette/full-size-v2'
  config.data.num_classes = 10
  part = EPOCHS / config.epochs
  config.epochs = EPOCHS
  config.input.color_noise_epochs *= part
  optimizer = config.optimizer
  optimizer.schedule.milestones = tuple(epoch * part for epoch in optimizer.schedule.milestones)
  for layer, changes in optimizer.layer_lr_factors.items():
    optimizer.layer_lr_factors[layer] = tuple((epoch * part, factor) for epoch, factor in changes)
  if variant == 'modern':  # in float32; the average of weights spans 500 of 1,776 steps
    config.model.compute_dtype = 'float32'
    config.ema_decay = 0.998
    optimizer.warmup_epochs = 1.0
    optimizer.base_batch_size = 0
  elif config.batch_size != 128:
    optimizer.base_batch_size = config.batch_size
  config.batch_size = 128
  return config
