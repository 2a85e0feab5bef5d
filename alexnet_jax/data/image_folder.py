"""An image folder as a data set: one folder of images for each class.

Either `train/<class>/` with `validation/<class>/` (also `val`, `valid` or `test`, in any case), or
only class folders (in `train/`, or at the top), of which a fixed part of every class is held out.
In place of class folders, the names of files may say their class: see `flat_folder`; or a table of
files and labels: see `label_tables`.
Images may lie at any depth in the folder of their class. The validation images of ImageNet may lie
in `validation/` itself, as in their archive: see `imagenet`. Kaggle's ImageNet may be given by any
level of its folder. Classes are numbered in the order of their names, as in Caffe's and
torchvision's ImageNet lists.
"""

import collections
import dataclasses
import errno
import hashlib
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from alexnet_jax.data import imagenet, order
from alexnet_jax.data.examples import AbsentData, Example, Source, SourceSplit
from alexnet_jax.data.flat_folder import read_flat
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.label_tables import read_tables
from alexnet_jax.data.listing import TABLE, LabeledFiles, Listing, list_images
from alexnet_jax.errors import UserError

# Errors of a disk or network mount that has gone away.
_GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)


class Files(Protocol):
  """Files by their paths below a root, in a folder or in an archive."""

  def read(self, file: str) -> bytes: ...

  def split(self, files: tuple[str, ...], labels: tuple[int, ...]) -> 'FileSplit': ...


class FileSplit(SourceSplit, Protocol):
  """Image files: `files[i]` shows class number `labels[i]`."""

  @property
  def files(self) -> tuple[str, ...]: ...

  @property
  def labels(self) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """Image files below `root`: `files[i]` is relative to it and shows class number `labels[i]`."""

  root: str
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
    path = os.path.join(self.root, self.files[index])
    try:
      with open(path, 'rb') as file:
        return Example(file.read(), self.labels[index], path)
    except OSError as error:
      if error.errno in _GONE or not os.path.isdir(os.path.dirname(path)):
        raise UserError(
          f'{path} can no longer be read ({error.strerror}): is its disk still there? run again'
          ' to go on from here'
        ) from error
      raise


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files in a folder."""

  root: pathlib.Path

  def read(self, file: str) -> bytes:
    return (self.root / file).read_bytes()

  def split(self, files: tuple[str, ...], labels: tuple[int, ...]) -> FolderSplit:
    return FolderSplit(str(self.root), files, labels)


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
  return label_files(name, root, Folder(root), listing, validation_fraction, title, table)


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
    or _read_class_folders(root, listing, facts)
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
    pairs = {name: hold_out(name, train[name], validation_fraction) for name in classes}
    train = {name: pair[0] for name, pair in pairs.items()}
    validation = {name: pair[1] for name, pair in pairs.items()}

  def split(files: dict[str, list[str]]) -> FileSplit:
    numbered = [(file, label) for label, name in enumerate(classes) for file in files.get(name, ())]
    names, labels = zip(*numbered, strict=True)
    return content.split(names, labels)

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


def _read_class_folders(
  root: pathlib.Path, listing: Listing, facts: dict[str, str]
) -> LabeledFiles:
  """Images in folders of their classes; `facts` gets the classes of ImageNet's flat validation."""
  train_folder, validation_folder, ignored = _find_splits(root, listing)
  train = dict(sorted(_list_classes(root, train_folder, listing).items()))
  validation = {}
  if validation_folder:
    validation = _list_validation(root, validation_folder, listing, facts)
  return LabeledFiles(train, validation, train_folder, validation_folder, ignored)


def _find_splits(root: pathlib.Path, listing: Listing) -> tuple[str, str, list[str]]:
  """Tells folders of classes from folders of splits, by their names and what they hold.

  Returns:
    Folder of the training classes, '' if they are at the top; folder of the validation images, ''
    if a part of each class is to be held out; and what is not used.

  Raises:
    UserError: it can be read in several ways, or in none.
  """
  direct, top = listing.children()
  inner = {
    name: {f.split('/')[1] for f in files if f.count('/') > 1} for name, files in top.items()
  }

  def called(*names: str) -> list[str]:
    return [name for name in sorted(top) if name.lower() in names]

  train = called('train', 'training')
  validation = called('val', 'valid', 'validation') or called('test', 'testing')
  for names in (train, validation):
    if len(names) > 1:
      raise UserError(f'{root} has both {names[0]}/ and {names[1]}/: leave one of them')
  ignored = [f'{len(direct):,} image(s) in no class folder'] if direct else []
  if train and (validation or inner[train[0]]):
    used = [*train, *validation]
    others = [name for name in sorted(top) if name not in used and top[name]]
    if others and not validation:
      raise UserError(
        f'{root} has {train[0]}/, which holds folders as a part of a data set does, and '
        f'{others[0]}/ beside it: call the folder of the validation images validation/; if both'
        f' are classes, move all classes into {train[0]}/'
      )
    ignored += [f'{name}/ with {len(top[name]):,} images' for name in others]
    return train[0], next(iter(validation), ''), ignored
  if validation:
    raise UserError(f'{root} has {validation[0]}/ but no train/: add train/, or name its parent')
  for one, other in itertools.combinations([n for n in sorted(inner) if len(inner[n]) > 1], 2):
    if len(shared := sorted(inner[one] & inner[other])) > 1:
      raise UserError(
        f'{root}: {one}/ and {other}/ both hold {shared[0]}/ and {shared[1]}/, as parts of a data'
        ' set do: call them train/ and validation/; if they are classes, move all classes into'
        ' train/'
      )
  return '', '', ignored


def _list_validation(
  root: pathlib.Path, part: str, listing: Listing, facts: dict[str, str]
) -> dict[str, list[str]]:
  """Like `_list_classes`, or ImageNet's validation images in a single folder."""
  files, folders = listing.children(part)
  if not files or folders:
    return _list_classes(root, part, listing)
  result: dict[str, list[str]] = {}
  names = map(os.path.basename, files)
  for file, name in zip(files, imagenet.validation_classes(root, names), strict=True):
    result.setdefault(name, []).append(file)
    facts[file] += f' {name}'
  return result


def _list_classes(root: pathlib.Path, part: str, listing: Listing) -> dict[str, list[str]]:
  """Class name -> sorted image files relative to `root`, of the class folders in one part."""
  direct, classes = listing.children(part)
  folder = root / part
  if part and direct and classes:
    raise UserError(
      f'{folder} has folders and {len(direct):,} images beside them: move these into the folder of '
      'their class'
    )
  if not classes:
    raise UserError(
      f'{folder} has no class folders: put the images of each class in its own, or call them'
      ' cat.0.jpg, dog.0.jpg and so on, or add a labels.csv with the columns file and label'
    )
  for name, files in classes.items():
    if not files:
      raise UserError(
        f'the class folder {folder / name} has no image ({" ".join(EXTENSIONS)}): add some or drop'
        ' it'
      )
  return classes


def hold_out(name: str, files: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
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
