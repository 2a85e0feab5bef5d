"""From a configuration's `data` section to an open store, doing only what has not been done."""

import dataclasses
import pathlib
from typing import Any

from alexnet_jax.data import sources, store, writer
from alexnet_jax.data.progress import Console, Progress
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand


def prepare_store(
  data_config: Any, *, progress: Progress | None = None, workers: int = 0
) -> store.Store:
  """Opens the store of a configuration, writing it first if it is not there.

  An existing store is enough: the data set it was made from may be gone. If the data set is there,
  it must be the one the store was made from.

  Args:
    data_config: a configuration's `data` section; see `sources.open_source`, and `store`, `resize`,
      `encoding`, `jpeg_quality`, `unreadable`, `train_examples` (0: all, else so many of the
      training rows, a random subset).
    progress: where to tell the user; standard error by default.
    workers: processes that decode; 0 for one a core.

  Returns:
    The store. Its statistics are those of all training rows, whatever `train_examples` says.

  Raises:
    UserError: bad configuration, data absent, disk too small, unreadable images, another store
      there.
  """
  progress = progress or Console()
  if data_config.source in ('digits', 'synthetic'):
    prepared = store.in_memory_store(
      sources.open_source(data_config), image_size=data_config.image_size, resize=data_config.resize
    )
  else:
    path = store_path(data_config)
    found = path.exists()
    prepared = (
      open_existing(path, data_config) if found else _write(path, data_config, progress, workers)
    )
  return _limit(prepared, data_config.train_examples)


def store_path(data_config: Any) -> pathlib.Path:
  """Where a configuration's store is: `store`, or beside the data set's folder."""
  if data_config.store:
    return expand(data_config.store, 'data.store')
  directory = sources.data_directory(data_config).resolve()
  name = directory.name if data_config.source == 'folder' else data_config.name
  name = name.replace('/', '-').replace(':', '-')
  parent = directory.with_name(f'{directory.name}-stores')
  end = '' if data_config.encoding == store.RAW else f'-jpeg{data_config.jpeg_quality}'
  return parent / f'{name}-{data_config.image_size}-{data_config.resize}{end}'


def encoding(data_config: Any) -> str:
  """How a configuration's store holds images: 'raw', or 'jpeg 90' for quality 90."""
  if data_config.encoding == store.RAW:
    return store.RAW
  return f'{store.JPEG}{data_config.jpeg_quality}'


def _write(path: pathlib.Path, data_config: Any, progress: Progress, workers: int) -> store.Store:
  if data_config.source == 'tfds':
    from alexnet_jax.data import tfds_prepare

    directory = sources.data_directory(data_config)
    tfds_prepare.ensure_prepared(data_config.name, directory, progress.say)
  source = sources.open_source(data_config)
  progress.say(
    f'preparing {path}: {len(source.train):,} + {len(source.eval):,} images of '
    f'{len(source.classes):,} classes'
  )
  written = writer.write_store(
    source,
    path,
    image_size=data_config.image_size,
    resize=data_config.resize,
    unreadable=data_config.unreadable,
    workers=workers,
    progress=progress,
    encoding=encoding(data_config),
  )
  if skipped := sum(len(names) for names in written.meta['unreadable'].values()):
    progress.say(f'{skipped:,} unreadable images were left out; {path}/meta.json names them')
  return written


def open_existing(path: pathlib.Path, data_config: Any) -> store.Store:
  """Opens an existing store after comparing it with what the configuration asks for.

  Raises:
    UserError: damaged, or of something else.
  """
  found = store.open_store(path)
  sources.check_classes(data_config, str(path), len(found.classes))
  made = {
    'image_size': data_config.image_size,
    'resize': data_config.resize,
    'encoding': encoding(data_config),
  }
  expected = made
  if _is_present(data_config):
    expected = store.describe(sources.open_source(data_config), **made)
  store.check_same(found, expected)
  return found


def _is_present(data_config: Any) -> bool:
  """Whether the data set itself can be looked at."""
  if data_config.source == 'folder':
    return bool(data_config.dir) and sources.data_directory(data_config).is_dir()
  from alexnet_jax.data import tfds_source

  directory = sources.data_directory(data_config)
  return tfds_source.is_prepared(tfds_source.find_builder(data_config.name, directory))


def _limit(prepared: store.Store, train_examples: int) -> store.Store:
  if not 0 <= train_examples <= len(prepared.train):
    raise UserError(
      f'data.train_examples={train_examples} must lie between 0 (all) and {len(prepared.train)}, '
      'the number of training images'
    )
  if not train_examples:
    return prepared
  return dataclasses.replace(prepared, train=prepared.train.first(train_examples))
