"""Training images of a run, where its data are still there."""

from pathlib import Path

import numpy as np

from alexnet_jax.data import preparation, store
from alexnet_jax.explorer.observation import TrainingImages
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.run.claim import read_run_config


def find_training_images(weights: Pretrained, workdir: Path, count: int) -> TrainingImages | None:
  """The first `count` training images of a run, a random subset; nothing is prepared for it.

  Returns:
    None if `count` is 0, or the store is gone or has another number of classes than the net.

  Raises:
    UserError: the store is damaged.
  """
  config = read_run_config(workdir).data
  in_memory = config.source in preparation.IN_MEMORY
  if not count or not (in_memory or preparation.store_path(config).exists()):
    return None
  if in_memory:
    found = preparation.prepare_store(config)
  else:
    found = store.open_store(preparation.store_path(config))
  if len(found.classes) != len(weights.classes):
    return None
  split = found.train.first(count)
  names = [weights.classes[label] for label in split.labels]
  return TrainingImages(np.asarray(split.images), names)
