"""Fine-tuning: a trained net learns your own classes from a few dozen images of each.

  python -m alexnet_jax.main --config=configs/finetune.py:/path/to/images --config.weights=PATH

The folder is as for configs/folder.py.  Net, image size, crop and what is subtracted are those of
the weights; only the last layer is new.  It learns ten times as fast as the others: its kernel at
10 and its bias at 20 times the base rate of 0.001, as fc8_flickr of Caffe's fine-tuning example
(finetune_flickr_style), where the other layers have 1 and 2.  To freeze layers, give the whole
table:

  --config.optimizer.layer_lr_factors="{'last': ((0.0, 10.0),), 'conv1': ((0.0, 0.0),)}"
"""

from alexnet_jax.config import default


def get_config(path: str = ''):
  if not path:
    raise ValueError('name the folder of images: --config=configs/finetune.py:/path/to/images')
  config = default()
  config.data.source = 'folder'
  config.data.dir = path
  # What is empty here is filled in from the weights.
  config.model.net = ''
  config.data.image_size = 0
  config.data.resize = ''
  config.input.crop = 0
  config.input.normalization = 'weights'
  config.input.color_noise = 0.0
  config.epochs = 30.0
  config.batch_size = 32
  config.eval.batch_size = 64
  config.optimizer.learning_rate = 0.001
  config.optimizer.layer_lr_factors = {'last': ((0.0, 10.0),)}
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.schedule.kind = 'cosine'
  config.log.every_steps = 20
  return config
