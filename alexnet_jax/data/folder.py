"""An image folder as a data set: one folder of images for each class.

Either `train/<class>/*` with `validation/<class>/*` (also `val` or `test`), or only class folders
(in `train/`, or at the top), of which a fixed part of every class is held out. The validation
images of ImageNet may lie in `validation/` itself, as in their archive: see `imagenet`. Classes are
numbered in the order of their names, as in Caffe's and torchvision's ImageNet lists.
"""

import dataclasses
import hashlib
import os
import pathlib
import zlib

from alexnet_jax.data import imagenet, order
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
      out, or the validation folder has a class that the training folder lacks or images whose
      class is not known.
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

  facts: dict[str, str] = {}
  train = _list_classes(root, train_root, facts)
  classes = tuple(sorted(train))
  if eval_root is not None:
    held_out = (_list_flat if is_flat(eval_root) else _list_classes)(root, eval_root, facts)
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
  return Source(
    root.resolve().name,
    classes,
    train_split,
    eval_split,
    _fingerprint(train_split, eval_split, facts),
    imagenet.class_names(classes, [root]),
  )


def is_flat(folder: pathlib.Path) -> bool:
  """Whether images lie in a folder itself.

  Raises:
    UserError: some do, and there are folders beside them.
  """
  with os.scandir(folder) as entries:
    visible = [entry for entry in entries if not entry.name.startswith('.')]
  images = sum(map(_is_image, visible))
  if images and any(entry.is_dir() for entry in visible):
    raise UserError(
      f'{folder} has folders and {images:,} images beside them: move these into the folder of '
      'their class'
    )
  return images > 0


def _list_flat(
  root: pathlib.Path, folder: pathlib.Path, facts: dict[str, str]
) -> dict[str, list[str]]:
  """As `_list_classes`, for ImageNet's validation images in one folder."""
  files = _list_images(root, folder, facts)
  result: dict[str, list[str]] = {}
  names = map(os.path.basename, files)
  for file, name in zip(files, imagenet.validation_classes(root, names), strict=True):
    result.setdefault(name, []).append(file)
    facts[file] += f' {name}'
  return result


def _list_classes(
  root: pathlib.Path, folder: pathlib.Path, facts: dict[str, str]
) -> dict[str, list[str]]:
  """Class name -> sorted image files relative to `root`; notes each file's size in `facts`."""
  result = {}
  for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
    if not entry.is_dir() or entry.name.startswith('.'):
      continue
    files = _list_images(root, entry.path, facts)
    if not files:
      raise UserError(
        f'the class folder {entry.path} has no image ({" ".join(EXTENSIONS)}): add some or drop it'
      )
    result[entry.name] = files
  if not result:
    raise UserError(f'{folder} has no class folders: put the images of each class in its own')
  return result


def _list_images(
  root: pathlib.Path, folder: str | os.PathLike[str], facts: dict[str, str]
) -> list[str]:
  """Sorted image files of one folder."""
  prefix = os.path.relpath(folder, root)
  files = []
  for entry in os.scandir(folder):
    if _is_image(entry):
      files.append(os.path.join(prefix, entry.name))
      facts[files[-1]] = str(entry.stat().st_size)
  return sorted(files)


def _is_image(entry: os.DirEntry[str]) -> bool:
  return entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith('.')


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


def _fingerprint(train: FolderSplit, held_out: FolderSplit, facts: dict[str, str]) -> str:
  """SHA-256 over every file's name, size and place, and its class where the name does not say."""
  digest = hashlib.sha256()
  for split in (train, held_out):
    for file in split.files:
      digest.update(f'{file}\0{facts[file]}\n'.encode(errors='surrogateescape'))
    digest.update(b'\n')
  return f'folder, {len(train)} + {len(held_out)} files, sha256 {digest.hexdigest()}'
