"""Opens the data set of a config, and its store, preparing what is missing first."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import folder_formats, generated, job, store, writer
from alexnet_jax.data.examples import AbsentData, Source
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.terminal import Console

# Made in memory: nothing is prepared or stored.
IN_MEMORY = ('digits', 'synthetic')
STAMP = 'source_files.txt'  # in a store


def prepare_store(
  data_config: Any, *, progress: Console | None = None, workers: int = 0
) -> store.Store:
  """Opens the store of a config, writing it first if it does not exist.

  Where the data set itself still exists, it must be the one that the store was made from.

  Args:
    data_config: `config.data`.
    progress: for messages; standard error by default.
    workers: processes that decode; 0 for one per core.

  Returns:
    The store, with the first `train_examples` training rows, a random subset, or all (0). Its
    statistics are those of all training rows.

  Raises:
    UserError: bad configuration, data absent, disk too small, unreadable images, another store
      there.
  """
  progress = progress or Console()
  if data_config.source in IN_MEMORY:
    prepared = job.in_memory_store(
      open_source(data_config), image_size=data_config.image_size, resize=data_config.resize
    )
  else:
    path = store_path(data_config)
    if path.exists():
      prepared = _open_existing(path, data_config, progress)
    else:
      prepared = _write(path, data_config, progress, workers)
  wanted, there = data_config.train_examples, len(prepared.train)
  if not 0 <= wanted <= there:
    raise UserError(
      f'data.train_examples={wanted} must lie between 0 (all) and {there}, the number of training'
      ' images'
    )
  return dataclasses.replace(prepared, train=prepared.train.first(wanted or there))


def store_path(data_config: Any) -> pathlib.Path:
  """The folder of a config's store: `store`, or one beside the data set's folder."""
  if data_config.store:
    return expand(data_config.store, 'data.store')
  directory = data_directory(data_config).resolve()
  name = directory.name if data_config.source == 'folder' else data_config.name
  name = name.replace('/', '-').replace(':', '-')
  parent = directory.with_name(f'{directory.name}-stores')
  end = '' if data_config.encoding == store.RAW else f'-jpeg{data_config.jpeg_quality}'
  return parent / f'{name}-{data_config.image_size}-{data_config.resize}{end}'


def eval_names(data_config: Any, prepared: store.Store) -> list[str]:
  """Names of the validation images in the order of their rows; reads all of them.

  Args:
    data_config: `config.data`.
    prepared: its store.

  Returns:
    Paths below `data.dir` in a folder of images, '<split>[<index>] <id>' of a TFDS data set.

  Raises:
    UserError: the data set is no longer there.
  """
  split = open_source(data_config).eval
  if not prepared.path:
    return [split[row].name for row in range(len(prepared.eval))]
  rows = np.load(prepared.path / 'eval' / 'source_index.npy')
  return [split[row].name.removeprefix(f'{data_directory(data_config)}{os.sep}') for row in rows]


def _settings(data_config: Any) -> dict[str, Any]:
  """What a config says of how images are stored, for `store.made_from`."""
  jpeg = f'{store.JPEG}{data_config.jpeg_quality}'
  return {
    'image_size': data_config.image_size,
    'resize': data_config.resize,
    'encoding': store.RAW if data_config.encoding == store.RAW else jpeg,
  }


def sizes(data_config: Any, progress: Console | None) -> tuple[int, int, int]:
  """Numbers of classes, training images and validation images, before anything is written.

  Args:
    data_config: `config.data`.
    progress: for messages while a TFDS data set of unknown size is downloaded; None to refuse that.

  Raises:
    UserError: the data set is absent, and its size is not known.
  """
  if data_config.source not in IN_MEMORY and (path := store_path(data_config)).exists():
    found = _open_existing(path, data_config, Console(quiet=True))
    return len(found.classes), len(found.train), len(found.eval)
  try:
    source = open_source(data_config)
  except AbsentData:
    if data_config.source == 'tfds':
      from alexnet_jax.data import tfds_source

      splits = data_config.train_split, data_config.eval_split
      directory = data_directory(data_config)
      if published := tfds_source.published_sizes(data_config.name, directory, *splits):
        return published
    if progress is None:
      raise
    source = _open_or_download(data_config, progress)
  return len(source.classes), len(source.train), len(source.eval)


def state(data_config: Any) -> str:
  """One line that says whether the store exists, or what would make preparing it fail."""
  path = store_path(data_config)
  if path.exists():
    return f'{path}: prepared'
  if data_config.source == 'tfds':
    from alexnet_jax.data import tfds_prepare

    try:
      tfds_prepare.check_ingredients(data_config.name, data_directory(data_config))
    except UserError as error:
      return f'{path}: to be prepared, which now would fail: {error}'
  return f'{path}: to be prepared'


def open_source(data_config: Any, progress: Console | None = None) -> Source:
  """Opens the data set that a config names; never imports TensorFlow.

  Args:
    data_config: `config.data`, of which the fields `source`, `name`, `dir`, `train_split`,
      `eval_split`, `validation_fraction`, `synthetic_examples`, `image_size` and `num_classes` (0:
      as many as there are) are read.
    progress: for lines while a folder is listed; none by default.

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
      directory = data_directory(data_config)
      with (progress or Console(quiet=True)).count(f'listing {directory}') as advance:
        source = folder_formats.open_images(directory, fraction, advance)
    case 'digits':
      source = generated.digits(data_config.image_size, fraction)
    case 'synthetic':
      classes = data_config.num_classes or 10
      source = generated.synthetic(classes, data_config.synthetic_examples, data_config.image_size)
    case other:
      raise ValueError(f'data.source={other!r}')
  _check_classes(data_config, source.name, len(source.classes))
  return source


def _check_classes(data_config: Any, name: str, classes: int) -> None:
  """Raises UserError unless `num_classes` is 0 or agrees with what the data has."""
  if data_config.num_classes not in (0, classes):
    raise UserError(
      f'data.num_classes={data_config.num_classes}, but {name} has {classes} classes: correct it, '
      'or set it to 0 to take what the data has'
    )


def data_directory(data_config: Any) -> pathlib.Path:
  """`data.dir`; where it is empty, of tfds $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  if data_config.dir:
    return expand(data_config.dir, 'data.dir')
  if data_config.source == 'folder':
    raise AbsentData(
      'data.source=folder needs data.dir: set --config.data.dir=FOLDER, a folder with a folder of '
      'images for each class'
    )
  if data_config.source != 'tfds':
    raise ValueError(f'no data directory is known of data.source={data_config.source!r}')
  return expand(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets', '$TFDS_DATA_DIR')


def _open_or_download(data_config: Any, progress: Console) -> Source:
  """Opens the data set, which TFDS may have to download and prepare first."""
  try:
    return open_source(data_config, progress)
  except AbsentData:
    if data_config.source != 'tfds':
      raise
  from alexnet_jax.data import tfds_prepare

  directory = data_directory(data_config)
  tfds_prepare.check_ingredients(data_config.name, directory)  # or a misspelt folder would be made
  directory.mkdir(parents=True, exist_ok=True)
  with writer.lock(directory / data_config.name.replace('/', '-'), progress):
    tfds_prepare.ensure_prepared(data_config.name, directory, progress.message)
  return open_source(data_config)


def _write(path: pathlib.Path, data_config: Any, progress: Console, workers: int) -> store.Store:
  progress.message(f'preparing {path}')
  stamp = _stamp(data_config)
  source = _open_or_download(data_config, progress)
  progress.message(f'{source.name}: {source.found}')
  written = writer.write_store(
    source,
    path,
    unreadable=data_config.unreadable,
    workers=workers,
    progress=progress,
    **_settings(data_config),
  )
  _keep_stamp(path, stamp)
  if skipped := sum(len(names) for names in written.meta['unreadable'].values()):
    progress.message(f'{skipped:,} unreadable images were left out; {path}/meta.json names them')
  return written


def _open_existing(path: pathlib.Path, data_config: Any, progress: Console) -> store.Store:
  """Opens an existing store and compares it with the config, and with the data set if it exists.

  Raises:
    UserError: it is damaged, or of other data or settings.
  """
  found = store.open_store(path)
  _check_classes(data_config, str(path), len(found.classes))
  settings, stamp = _settings(data_config), _stamp(data_config)
  kept = path / STAMP
  if stamp and kept.is_file() and kept.read_text() == stamp:
    store.check_made_from(found, settings)
    progress.message(f'{path}: {_contents(found)}; {data_config.dir} has not changed')
    return found
  try:
    source = open_source(data_config, progress)
  except AbsentData:
    store.check_made_from(found, settings)
    progress.message(
      f'{path}: {_contents(found)}; the images they were prepared from no longer exist'
    )
  else:
    progress.message(f'{source.name}: {source.found}')
    store.check_made_from(found, store.made_from(source, **settings))
    _keep_stamp(path, stamp)
  return found


def _contents(found: store.Store) -> str:
  return (
    f'{len(found.train):,} training and {len(found.eval):,} validation images of'
    f' {len(found.classes):,} classes'
  )


def _stamp(data_config: Any) -> str:
  """What tells without listing packed images that they are those of the store; '' of others."""
  stamp = ''
  if data_config.source == 'folder' and data_config.dir:
    stamp = folder_formats.stamp(data_directory(data_config))
  return stamp and f'{data_config.validation_fraction}\n{stamp}\n'


def _keep_stamp(path: pathlib.Path, stamp: str) -> None:
  """Writes it into a store whose images have just been compared with those it was made from."""
  if stamp:
    with contextlib.suppress(OSError):  # somebody else's store: the images will be listed again
      files.write(path / STAMP, stamp)
