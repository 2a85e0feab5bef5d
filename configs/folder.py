"""Your own images: in a folder for each class, or as docs/train.md lists.

  python -m alexnet_jax.main --config=configs/folder.py:/path/to/images

A folder holds train/<class>/ and validation/<class>/ (or val, valid, test), or just <class>/, of
which a fifth of every class is then held out (--config.data.validation_fraction); images of any
usual format lie at any depth in the folder of their class.  A table of files and labels, a zip
file, parquet files and WebDataset shards will do as well.  AlexNet with batch normalization: it
learns from a few thousand images without tuning.
"""

from alexnet_jax.config import default


def get_config(path: str = ''):
  if not path:
    raise ValueError('name your images: --config=configs/folder.py:/path/to/images')
  config = default()
  config.data.source = 'folder'
  config.data.dir = path
  config.model.net = 'bn'
  config.input.crop = 227
  config.input.normalization = 'mean_pixel'
  config.input.scale = 1 / 256
  config.epochs = 60.0
  config.batch_size = 64
  config.eval.batch_size = 64
  config.optimizer.warmup_epochs = 2.0
  config.optimizer.schedule.kind = 'cosine'
  config.eval.final_views = 10
  return config
