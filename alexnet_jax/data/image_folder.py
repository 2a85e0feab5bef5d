"""Image files as a data set: what says their classes, and which of them are validation images.

Their folders say the classes (see `class_folders`), their names (see `flat_folder`), or a table of
files and labels (see `label_tables`). Where there are no validation images, a fixed part of every
class is held out. Kaggle's ImageNet may be given by any level of its folder. Classes are numbered
in the order of their names, as in Caffe's and torchvision's ImageNet lists; if they are numbers in
a table, in the order of these.
"""

import collections
import dataclasses
import errno
import hashlib
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from alexnet_jax.data import imagenet, order
from alexnet_jax.data.class_folders import read_class_folders
from alexnet_jax.data.examples import AbsentData, Example, Source, gone
from alexnet_jax.data.flat_folder import read_flat
from alexnet_jax.data.label_tables import read_tables
from alexnet_jax.data.listing import TABLE, Listing, list_images
from alexnet_jax.errors import UserError

# Errors of a disk or network mount that has gone away.
_GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)


class Files(Protocol):
  """Files by their paths below a root, in a folder or in archives. Picklable."""

  def read(self, file: str) -> bytes: ...

  def path(self, file: str) -> str: ...


@dataclasses.dataclass(frozen=True)
class FileSplit:
  """Image files: `files[i]`, a path in `content`, shows class number `labels[i]`."""

  content: Files
  files: tuple[str, ...]
  labels: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Example:
    """Reads one file.

    Raises:
      UserError: the disk is gone, so that no other file could be read either.
      OSError: this file cannot be read.
    """
    file = self.files[index]
    return Example(self.content.read(file), self.labels[index], self.content.path(file))


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files below the folder `root`."""

  root: str

  def path(self, file: str) -> str:
    return os.path.join(self.root, file)

  def read(self, file: str) -> bytes:
    path = self.path(file)
    try:
      with open(path, 'rb') as opened:
        return opened.read()
    except OSError as error:
      if error.errno in _GONE or not os.path.isdir(os.path.dirname(path)):
        raise gone(path, error.strerror) from error
      raise


def open_folder(
  root: pathlib.Path,
  validation_fraction: float,
  table: str = '',
  advance: Callable[[int], object] = lambda n: None,
) -> Source:
  """Lists an image folder.

  Args:
    root: the folder.
    validation_fraction: part of each class to hold out, in (0, 1), where there is no validation
      folder. Which images are held out depends on nothing but their names.
    table: the file in there that says the classes; '' to find out what does.
    advance: is called with 1 after each image.

  Raises:
    AbsentData: the folder is absent or empty.
    UserError: as `label_files`; or the folder cannot be read.
  """
  if not root.is_dir() or not any(root.iterdir()):  # of an absent disk, the mount point is there
    raise AbsentData(
      f'data.dir={root} is not a folder, or empty: give a folder with one folder of images for'
      ' each class, or with train/ and validation/ made of such folders'
    )
  name, title = root.resolve().name, ''
  if not table and (kaggle := imagenet.kaggle_images(root)):
    root, name, title = kaggle, 'imagenet', f'ImageNet as Kaggle packs it, at {kaggle}: '
  listing = list_images(root, imagenet.KNOWN_FILES, advance)
  return label_files(name, root, Folder(str(root)), listing, validation_fraction, title, table)


def label_files(
  name: str,
  root: pathlib.Path,
  content: Files,
  listing: Listing,
  validation_fraction: float,
  title: str = '',
  table: str = '',
) -> Source:
  """The data set of image files whose folders, names or tables say their classes.

  Args:
    name: of the data set.
    root: its folder or archive, for messages.
    content: reads its files.
    listing: what is in it.
    validation_fraction: part of each class to hold out, in (0, 1), where there are no validation
      images.
    title: what this is, for the user, with its punctuation.
    table: the file in there that says the classes; '' to find out what does.

  Raises:
    UserError: it cannot be understood, has no classes, a class has no image or too few to hold one
      out, or there are validation images of a class that training images lack, or of none.
  """
  facts = dict(listing.files)
  labeled = (
    read_tables(root, content.read, listing, facts, table)
    or read_flat(root, listing)
    or read_class_folders(root, listing, facts)
  )
  train, validation = labeled.train, labeled.validation
  classes = tuple(train)
  counts = [len(train[name]) for name in classes]
  if strangers := sorted(set(validation) - set(train)):
    raise UserError(
      f'{root / labeled.validation_folder} has {len(strangers)} class(es) that'
      f' {root / labeled.train_folder} lacks, the first is {strangers[0]!r}: add it there or remove'
      ' it'
    )
  if not validation:
    pairs = {name: split_class(name, train[name], validation_fraction) for name in classes}
    train = {name: pair[0] for name, pair in pairs.items()}
    validation = {name: pair[1] for name, pair in pairs.items()}

  def split(files: dict[str, list[str]]) -> FileSplit:
    numbered = [(file, label) for label, name in enumerate(classes) for file in files.get(name, ())]
    names, labels = zip(*numbered, strict=True)
    return FileSplit(content, names, labels)

  train_split, eval_split = split(train), split(validation)
  small, large = counts.index(min(counts)), counts.index(max(counts))
  part = labeled.validation_folder + '/' * (not labeled.tables)
  if not labeled.validation:
    part = f'{validation_fraction:g} of each class'
  found = (
    f'{title}{len(train_split):,} training and {len(eval_split):,} validation images ({part}) of'
    f' {len(classes):,} classes, the smallest {classes[small]} with {counts[small]:,}, the largest'
    f' {classes[large]} with {counts[large]:,}'
  )
  if labeled.tables:
    found += f'; classes from {" and ".join(labeled.tables)}'
  kinds = listing.ignored - collections.Counter({TABLE: len(labeled.tables)})
  ignored = [*labeled.ignored, *(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))]
  return Source(
    name,
    classes,
    train_split,
    eval_split,
    _fingerprint(train_split, eval_split, facts),
    imagenet.class_names(classes, [root]),
    f'{found}; ignored: {", ".join(ignored)}' if ignored else found,
  )


def split_class(name: str, files: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
  """Splits the files of a class; the seed is its name, so other classes do not matter."""
  if len(files) < 2:
    raise UserError(
      f'class {name!r} has 1 image, none can be held out: add images, or a validation/ folder'
    )
  count = min(max(1, round(len(files) * fraction)), len(files) - 1)
  shuffled = order.permutation(zlib.crc32(name.encode(errors='surrogateescape')), 0, len(files))
  chosen = set(shuffled[:count].tolist())
  kept = [file for index, file in enumerate(files) if index not in chosen]
  return kept, [files[index] for index in sorted(chosen)]


def _fingerprint(train: FileSplit, validation: FileSplit, facts: dict[str, str]) -> str:
  """SHA-256 of the names, sizes and order of all files, and of classes not in their names."""
  digest = hashlib.sha256()
  for split in (train, validation):
    for file in split.files:
      digest.update(f'{file}\0{facts[file]}\n'.encode(errors='surrogateescape'))
    digest.update(b'\n')
  return f'folder, {len(train)} + {len(validation)} files, sha256 {digest.hexdigest()}'
