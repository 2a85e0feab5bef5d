"""An image folder as a data set: one folder of images for each class.

Either `train/<class>/` with `validation/<class>/` (also `val`, `valid` or `test`, in any case), or
only class folders (in `train/`, or at the top), of which a fixed part of every class is held out.
Images may lie at any depth in the folder of their class. The validation images of ImageNet may lie
in `validation/` itself, as in their archive: see `imagenet`. Classes are numbered in the order of
their names, as in Caffe's and torchvision's ImageNet lists.
"""

import dataclasses
import errno
import hashlib
import os
import pathlib
import zlib

from alexnet_jax.data import imagenet, layout, order
from alexnet_jax.data.examples import Example, Source
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.listing import Listing, list_images
from alexnet_jax.errors import UserError

# Errors of a disk or network mount that has gone away.
_GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)


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


def open_folder(root: pathlib.Path, validation_fraction: float) -> Source:
  """Lists an image folder.

  Args:
    root: the folder.
    validation_fraction: part of each class to hold out, in (0, 1), where there is no validation
      folder. Which images are held out depends on nothing but their names.

  Raises:
    UserError: the folder is absent, cannot be read or understood, has no classes, a class has no
      image or too few to hold one out, or the validation folder has a class that the training
      folder lacks or images whose class is not known.
  """
  if not root.is_dir():
    raise UserError(
      f'data.dir={root} is not a folder: give a folder with one folder of images for each class, '
      'or with train/ and validation/ made of such folders'
    )
  listing = list_images(root, imagenet.KNOWN_FILES)
  parts = layout.find_layout(root, listing)
  facts = {file: str(size) for file, size in listing.files.items()}
  train = _list_classes(root, parts.train, listing)
  classes = tuple(sorted(train))
  counts = [len(train[name]) for name in classes]
  if parts.held_out:
    held_out = _list_held_out(root, parts.held_out, listing, facts)
    if strangers := sorted(set(held_out) - set(train)):
      raise UserError(
        f'{root / parts.held_out} has {len(strangers)} class(es) that {root / parts.train} lacks, '
        f'the first is {strangers[0]!r}: add it there or remove it'
      )
  else:
    pairs = {name: _hold_out(name, train[name], validation_fraction) for name in classes}
    train = {name: pair[0] for name, pair in pairs.items()}
    held_out = {name: pair[1] for name, pair in pairs.items()}

  def split(files: dict[str, list[str]]) -> FolderSplit:
    numbered = [(file, label) for label, name in enumerate(classes) for file in files.get(name, ())]
    names, labels = zip(*numbered, strict=True)
    return FolderSplit(str(root), names, labels)

  train_split, eval_split = split(train), split(held_out)
  small, large = counts.index(min(counts)), counts.index(max(counts))
  found = (
    f'{len(train_split):,} training and {len(eval_split):,} validation images '
    f'({parts.held_out + "/" if parts.held_out else f"{validation_fraction:g} of each class"}) of '
    f'{len(classes):,} classes, the smallest {classes[small]} with {counts[small]:,}, the largest '
    f'{classes[large]} with {counts[large]:,}'
  )
  if ignored := [*parts.ignored, *_kinds(listing)]:
    found += f'; ignored: {", ".join(ignored)}'
  return Source(
    root.resolve().name,
    classes,
    train_split,
    eval_split,
    _fingerprint(train_split, eval_split, facts),
    imagenet.class_names(classes, [root]),
    found,
  )


def _kinds(listing: Listing) -> list[str]:
  """Other files and broken links, for the user."""
  kinds = [f'{count:,} {kind}' for kind, count in sorted(listing.ignored.items())]
  return kinds + [f'the broken link {path}' for path in listing.broken]


def _list_held_out(
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
    raise UserError(f'{folder} has no class folders: put the images of each class in its own')
  for path in listing.broken:
    if os.path.dirname(path) == part:
      raise UserError(f'the class folder {root / path} is a broken link: repair or remove it')
  for name, files in classes.items():
    if not files:
      raise UserError(
        f'the class folder {folder / name} has no image ({" ".join(EXTENSIONS)}): add some or drop'
        ' it'
      )
  return classes


def _hold_out(name: str, files: list[str], fraction: float) -> tuple[list[str], list[str]]:
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


def _fingerprint(train: FolderSplit, held_out: FolderSplit, facts: dict[str, str]) -> str:
  """SHA-256 of the names, sizes and order of all files, and of classes not in their names."""
  digest = hashlib.sha256()
  for split in (train, held_out):
    for file in split.files:
      digest.update(f'{file}\0{facts[file]}\n'.encode(errors='surrogateescape'))
    digest.update(b'\n')
  return f'folder, {len(train)} + {len(held_out)} files, sha256 {digest.hexdigest()}'
