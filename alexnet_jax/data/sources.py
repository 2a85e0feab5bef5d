"""Labeled images, by index, from wherever they are: the door between data sets and the store."""

import os
import pathlib
from typing import Any

from alexnet_jax.data import generated, image_folder
from alexnet_jax.data.examples import AbsentData, Source
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand

# Made in memory: nothing is prepared or stored.
IN_MEMORY = ('digits', 'synthetic')


def open_source(data_config: Any) -> Source:
  """Opens the data set that a config names; never imports TensorFlow.

  Args:
    data_config: `config.data`, of which the fields `source`, `name`, `dir`, `train_split`,
      `eval_split`, `validation_fraction`, `synthetic_examples`, `image_size` and `num_classes` (0:
      as many as there are) are read.

  Raises:
    AbsentData: there are no data.
    UserError: they are incomplete or damaged, or of another number of classes.
  """
  fraction = data_config.validation_fraction
  match data_config.source:
    case 'tfds':
      from alexnet_jax.data import tfds_source  # takes a second to import

      splits = data_config.train_split, data_config.eval_split
      source = tfds_source.open_tfds(data_config.name, data_directory(data_config), *splits)
    case 'folder':
      source = image_folder.open_folder(data_directory(data_config), fraction)
    case 'digits':
      source = generated.digits(data_config.image_size, fraction)
    case 'synthetic':
      source = generated.synthetic(
        data_config.num_classes or 10, data_config.synthetic_examples, data_config.image_size
      )
    case other:
      raise ValueError(f'unknown data.source {other!r}')
  check_classes(data_config, source.name, len(source.classes))
  return source


def check_classes(data_config: Any, name: str, classes: int) -> None:
  """Raises UserError unless `num_classes` is 0 or agrees with what the data has."""
  if data_config.num_classes not in (0, classes):
    raise UserError(
      f'data.num_classes={data_config.num_classes}, but {name} has {classes} classes: correct it, '
      'or set it to 0 to take what the data has'
    )


def data_directory(data_config: Any) -> pathlib.Path:
  """Where a configuration's data are: `dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  if data_config.dir:
    return expand(data_config.dir, 'data.dir')
  if data_config.source == 'folder':
    raise AbsentData(
      'data.source=folder needs data.dir: set --config.data.dir=FOLDER, a folder with a folder of '
      'images for each class'
    )
  return expand(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets', '$TFDS_DATA_DIR')
