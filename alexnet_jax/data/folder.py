"""An image folder as a data set: one folder of images for each class.

Either `train/<class>/*` with `validation/<class>/*` (also `val` or `test`), or only class folders
(in `train/`, or at the top), of which a fixed part of every class is held out. Classes are numbered
in the order of their names, as in Caffe's and torchvision's ImageNet lists.
"""

import dataclasses
import hashlib
import os
import pathlib
import zlib

from alexnet_jax.data import order
from alexnet_jax.data.generated import check_fraction
from alexnet_jax.data.sources import Example, Source
from alexnet_jax.errors import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
VALIDATION_NAMES = ('validation', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """Image files below `root`: `files[i]` is relative to it and shows class number `labels[i]`."""

  root: str
  files: tuple[str, ...]
  labels: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Example:
    path = os.path.join(self.root, self.files[index])
    with open(path, 'rb') as file:
      return Example(file.read(), self.labels[index], path)


def open_folder(root: pathlib.Path, validation_fraction: float) -> Source:
  """Lists an image folder.

  Args:
    root: the folder.
    validation_fraction: part of each class to hold out, in (0, 1), where there is no validation
      folder. Which images are held out depends on nothing but their names.

  Raises:
    UserError: the folder is absent, has no classes, a class has no image or too few to hold one
      out, or the validation folder has a class that the training folder lacks.
  """
  if not root.is_dir():
    raise UserError(
      f'data.dir={root} is not a folder: give a folder with one folder of images for each class, '
      'or with train/ and validation/ made of such folders'
    )
  train_root = root / 'train' if (root / 'train').is_dir() else root
  eval_root = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
  if eval_root is not None and train_root == root:
    raise UserError(f'{root} has {eval_root.name}/ but no train/: add train/, or name its parent')

  sizes: dict[str, int] = {}
  train = _list_classes(root, train_root, sizes)
  classes = tuple(sorted(train))
  if eval_root is not None:
    held_out = _list_classes(root, eval_root, sizes)
    if strangers := sorted(set(held_out) - set(train)):
      raise UserError(
        f'{eval_root} has {len(strangers)} class(es) that {train_root} lacks, the first is '
        f'{strangers[0]!r}: add it there or remove it'
      )
  else:
    check_fraction(validation_fraction)
    pairs = {name: _hold_out(name, train[name], validation_fraction) for name in classes}
    train = {name: pair[0] for name, pair in pairs.items()}
    held_out = {name: pair[1] for name, pair in pairs.items()}

  def split(files: dict[str, list[str]]) -> FolderSplit:
    numbered = [(file, label) for label, name in enumerate(classes) for file in files.get(name, ())]
    names, labels = zip(*numbered, strict=True)
    return FolderSplit(str(root), names, labels)

  train_split, eval_split = split(train), split(held_out)
  return Source(root.resolve().name, classes, train_split, eval_split,
                _fingerprint(train_split, eval_split, sizes))


def _list_classes(
  root: pathlib.Path, folder: pathlib.Path, sizes: dict[str, int]
) -> dict[str, list[str]]:
  """Class name -> sorted image files relative to `root`; notes each file's size in `sizes`."""
  result = {}
  for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
    if not entry.is_dir() or entry.name.startswith('.'):
      continue
    prefix = os.path.relpath(entry.path, root)
    files = []
    for image in os.scandir(entry.path):
      if image.name.lower().endswith(EXTENSIONS) and not image.name.startswith('.'):
        files.append(os.path.join(prefix, image.name))
        sizes[files[-1]] = image.stat().st_size
    if not files:
      raise UserError(
        f'the class folder {entry.path} has no image ({" ".join(EXTENSIONS)}): add some or drop it'
      )
    result[entry.name] = sorted(files)
  if not result:
    raise UserError(f'{folder} has no class folders: put the images of each class in its own')
  return result


def _hold_out(name: str, files: list[str], fraction: float) -> tuple[list[str], list[str]]:
  """Splits one class; the seed is its name, so that other classes do not matter."""
  if len(files) < 2:
    raise UserError(
      f'class {name!r} has 1 image, none can be held out: add images, or a validation/ folder'
    )
  count = min(max(1, round(len(files) * fraction)), len(files) - 1)
  shuffled = order.permutation(zlib.crc32(name.encode(errors='surrogateescape')), 0, len(files))
  chosen = set(shuffled[:count].tolist())
  kept = [file for index, file in enumerate(files) if index not in chosen]
  return kept, [files[index] for index in sorted(chosen)]


def _fingerprint(train: FolderSplit, held_out: FolderSplit, sizes: dict[str, int]) -> str:
  """SHA-256 over every file's name, size and place."""
  digest = hashlib.sha256()
  for split in (train, held_out):
    for file in split.files:
      digest.update(f'{file}\0{sizes[file]}\n'.encode(errors='surrogateescape'))
    digest.update(b'\n')
  return f'folder, {len(train)} + {len(held_out)} files, sha256 {digest.hexdigest()}'
