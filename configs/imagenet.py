"""ImageNet ILSVRC-2012, by default with the net and recipe behind the published numbers.

  python -m alexnet_jax.main --config=configs/imagenet.py            # config #145 of 2012
  python -m alexnet_jax.main --config=configs/imagenet.py:VARIANT
  python -m alexnet_jax.main --config=configs/imagenet.py --config.data.source=synthetic

Variants and the published single-net errors on the ILSVRC-2012 validation set (top-1 / top-5):

  (none)     layers-145.cfg, the net of Table 2: 40.7 / 18.2 with ten views
  paper      the text alone: N(0, 0.01), ReLU before LRN, 90 epochs, three drops
  auto       #145 with the automatic schedule of #170: 40.5 / 18.1 ten views, 42.3 / 19.6 center
  caffe      BVLC's bvlc_alexnet: 42.9 / 19.8 center
  caffenet   BVLC's reference CaffeNet: 42.6 / 19.6 center
  owt        torchvision's alexnet: 43.5 / 20.9 center
  one_tower  the one-GPU net: 1.7 / 1.2 worse than two towers on ILSVRC-2010
  conv6      CNN*: 39.0 / 16.6 when pre-trained on ImageNet 2011, which this config does not do
  bn         AlexNet with batch normalization, as the LARS authors train it, batch 512
  bn_8k      the same with LARC, warm-up and batch 8,192; also bn_16k and bn_32k
  modern     #145's net with a recipe of today: cosine, label smoothing, averaged weights, bfloat16.
             Label smoothing gave Inception-v3 0.2 points (arXiv 1512.00567); what the whole gains
             here is not known

None of these has been run here: ImageNet is not available to this project.
"""

from alexnet_jax.config import default


def get_config(variant: str = ''):
  config = default()
  config.data.name = 'imagenet2012'
  config.data.num_classes = 1000
  config.eval.final_views = 10
  variants = {
    '': _krizhevsky2012,
    'paper': _paper,
    'auto': _auto,
    'caffe': _caffe,
    'caffenet': _caffenet,
    'owt': _owt,
    'one_tower': _one_tower,
    'conv6': _conv6,
    'bn': _bn,
    'bn_8k': lambda config: _lars(config, 8192, 10.0, 3.836),  # 600 steps of warm-up
    'bn_16k': lambda config: _lars(config, 16384, 24.0, 5.115),  # 400
    'bn_32k': lambda config: _lars(config, 32768, 32.0, 10.23),  # 400
    'modern': _modern,
  }
  if variant not in variants:
    raise ValueError(
      f'configs/imagenet.py has no variant {variant!r}: choose one of'
      f' {", ".join(filter(None, variants))}'
    )
  variants[variant](config)
  return config


def _krizhevsky2012(config):
  """The hand-made schedule in the notes of CHM layer-params-145.cfg."""
  config.model.net = 'krizhevsky2012'
  config.epochs = 91.0
  config.optimizer.schedule.milestones = (25.0, 51.0, 79.0)
  # The biases' rate of .02 is never lowered, while conv1 is slowed and then frozen.
  config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_lr_factors = {'conv1/kernel': ((67.0, 0.1),), 'conv1': ((72.0, 0.0),)}
  config.input.color_noise_epochs = 67.0


def _paper(config):
  """Paper section 5: equal rates, 0.01 divided by 10 three times, roughly 90 cycles."""
  config.model.net = 'paper'
  config.epochs = 90.0
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.decay_biases = True
  # The text does not say when; these are the epochs of #145.
  config.optimizer.schedule.milestones = (25.0, 51.0, 79.0)


def _auto(config):
  """#170: dexp[250, 4] for weights, dexp[10, 2] for biases; conv1 frozen at 74, no noise from 68.

  The note names conv1's weights; as in #145's file its biases are frozen with them.
  """
  config.epochs = 95.0
  config.optimizer.schedule.kind = 'exponential'
  config.optimizer.schedule.levels = 4
  config.optimizer.schedule.target_factor = 250.0
  config.optimizer.bias_schedule.kind = 'exponential'
  config.optimizer.bias_schedule.levels = 2
  config.optimizer.bias_schedule.target_factor = 10.0
  config.optimizer.layer_lr_factors = {'conv1': ((74.0, 0.0),)}
  config.input.color_noise_epochs = 68.0


def _one_tower(config):
  """CHM layer-params-145-half.cfg, which was trained on ILSVRC-2010.

  Its notes give the drops at 20 and 48, conv1 slowed at 66, frozen at 72, and the end at 96, but no
  epoch for the last drop: 81 is chosen here.  Biases keep their rate, as in #145.
  """
  config.model.net = 'one_tower'
  config.epochs = 96.0
  config.optimizer.schedule.milestones = (20.0, 48.0, 81.0)
  config.optimizer.bias_schedule.kind = 'constant'
  config.optimizer.layer_lr_factors = {'conv1/kernel': ((66.0, 0.1),), 'conv1': ((72.0, 0.0),)}
  config.input.color_noise_epochs = 66.0


def _conv6(config):
  _krizhevsky2012(config)
  config.model.net = 'conv6'


def _caffe(config):
  """models/bvlc_alexnet: batch 256, dropped every 100,000 of 450,000 iterations (19.98 epochs).

  Caffe subtracts the part of the mean image under the crop; here the central part, as in 2012.
  """
  config.model.net = 'caffe'
  config.data.resize = 'warp'
  config.input.crop = 227
  config.input.color_noise = 0.0
  config.batch_size = 256
  config.epochs = 89.9
  config.optimizer.schedule.milestones = (19.98, 39.96, 59.95, 79.93)


def _caffenet(config):
  _caffe(config)
  config.model.net = 'caffenet'


def _owt(config):
  """torchvision's references/classification recipe for alexnet, but for two things.

  Its random resized crop is a random crop here, and its learning rate stands outside the velocity,
  which differs only just after a drop.  Its published errors belong to its own recipe.
  """
  config.model.net = 'owt'
  config.batch_size = 256
  config.epochs = 90.0
  config.input.normalization = 'torchvision'
  config.input.color_noise = 0.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_biases = True
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.schedule.milestones = (30.0, 60.0)
  config.eval.final_views = 1


def _bn(config):
  """NVIDIA/caffe models/alexnet_bn: solver.prototxt with train_val2.prototxt.

  Batch 512, rate .08, poly(2).  Caffe subtracts the mean image under the crop; here its center.
  """
  config.model.net = 'bn_after_pool'
  config.input.crop = 227
  config.input.scale = 1 / 256
  config.input.color_noise = 0.0
  config.batch_size = 512
  config.optimizer.bias_lr_multiplier = 1.0
  config.optimizer.decay_biases = True
  config.epochs = 100.0
  config.optimizer.learning_rate = 0.08
  config.optimizer.schedule.kind = 'polynomial'
  config.optimizer.schedule.power = 2.0


def _lars(config, batch_size: int, learning_rate: float, warmup_epochs: float):
  """solver_8K, _16k and _32k.prototxt there: LARC "clip" with eta .001, poly(2), 100 epochs.

  The rate rises from 1 as the square of the steps.  Theirs computes in float16, and their moments
  are of a GPU's share of 8,192 images on a number of GPUs that no file gives: 128 is chosen here.
  """
  _bn(config)
  config.batch_size = batch_size
  config.optimizer.name = 'larc'
  config.optimizer.learning_rate = learning_rate
  config.optimizer.warmup_epochs = warmup_epochs
  config.optimizer.warmup_start = 1.0
  config.optimizer.warmup_power = 2.0
  config.model.ghost_batch = 128


def _modern(config):
  """Same net, views and length as #145; rate .01 per 128 images, scaled linearly."""
  config.model.compute_dtype = 'bfloat16'
  config.batch_size = 512
  config.label_smoothing = 0.1
  config.ema_decay = 0.9999
  config.optimizer.base_batch_size = 128
  config.optimizer.warmup_epochs = 2.0
  config.optimizer.schedule.kind = 'cosine'
