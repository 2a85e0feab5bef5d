"""Images in folders of their classes: `train/<class>/` with `validation/<class>/`, or `<class>/`.

Folders of splits may be called in any case, also `val`, `valid` or `test`. Images may lie at any
depth in the folder of their class. The validation images of ImageNet may lie in `validation/`
itself, as in their archive: see `imagenet`.
"""

import itertools
import os
import pathlib

from alexnet_jax.data import imagenet
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.listing import LabeledFiles, Listing
from alexnet_jax.data.split_files import NAMES
from alexnet_jax.errors import UserError


def read_class_folders(root: pathlib.Path, listing: Listing, facts: dict[str, str]) -> LabeledFiles:
  """Classes from the names of folders.

  Args:
    root: the data set, for messages.
    listing: what is in it.
    facts: what differs when a file does, to which the classes of ImageNet's flat validation images
      are added.

  Raises:
    UserError: it can be read in several ways, or in none, or a class has no image.
  """
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

  train, validation, test = (
    [name for name in sorted(top) if name.lower() in names] for names in NAMES.values()
  )
  validation = validation or test
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
