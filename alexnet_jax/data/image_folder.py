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
import os
import pathlib
from collections.abc import Callable

from alexnet_jax.data import imagenet
from alexnet_jax.data.class_folders import read_class_folders
from alexnet_jax.data.examples import AbsentData, Source, gone
from alexnet_jax.data.flat_folder import read_flat
from alexnet_jax.data.label_tables import read_tables
from alexnet_jax.data.labeled_split import ByClass, Images, make_source
from alexnet_jax.data.listing import TABLE, Listing, list_images
from alexnet_jax.errors import UserError

# Errors of a disk or network mount that has gone away.
_GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files below the folder `root`."""

  root: str

  def name(self, file: str) -> str:
    return os.path.join(self.root, file)

  def read(self, file: str) -> bytes:
    path = self.name(file)
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
    problem = 'is empty, or no data set' if root.exists() else 'does not exist'
    raise AbsentData(
      f'data.dir={root} {problem}: give a folder with one folder of images for each class, or with'
      ' train/ and validation/ made of such folders, or one of the forms in docs/train.md'
    )
  name, title = root.resolve().name, ''
  if not table and (kaggle := imagenet.kaggle_images(root)):
    root, name, title = kaggle, 'imagenet', f'ImageNet as Kaggle packs it, at {kaggle}: '
  listing = list_images(root, imagenet.KNOWN_FILES, advance)
  return label_files(name, root, Folder(str(root)), listing, validation_fraction, title, table)


def label_files(
  name: str,
  root: pathlib.Path,
  images: Images,
  listing: Listing,
  validation_fraction: float,
  title: str = '',
  table: str = '',
) -> Source:
  """The data set of image files whose folders, names or tables say their classes.

  Args:
    name: of the data set.
    root: its folder or archive, for messages.
    images: reads its files.
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
    read_tables(root, images.read, listing, facts, table)
    or read_flat(root, listing)
    or read_class_folders(root, listing, facts)
  )
  if strangers := sorted(set(labeled.validation) - set(labeled.train)):
    raise UserError(
      f'{root / labeled.validation_folder} has {len(strangers)} class(es) that'
      f' {root / labeled.train_folder} lacks, the first is {strangers[0]!r}: add it there or remove'
      ' it'
    )
  kinds = listing.ignored - collections.Counter({TABLE: len(labeled.tables)})
  return make_source(
    name,
    'folder',
    ByClass(images, labeled.train, facts),
    ByClass(images, labeled.validation, facts),
    validation_fraction=validation_fraction,
    validation_name=labeled.validation_folder + '/' * (not labeled.tables),
    title=title,
    remark=' from ' * bool(labeled.tables) + ' and '.join(labeled.tables),
    ignored=[*labeled.ignored, *(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))],
    class_names=imagenet.class_names(tuple(labeled.train), [root]),
  )
