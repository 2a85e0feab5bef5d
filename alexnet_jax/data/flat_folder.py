"""Images in one folder whose names say their class: `<class>.<number>.<extension>`, or with `_`.

Kaggle's dogs-vs-cats as downloaded: `train/cat.0.jpg` to `train/dog.12499.jpg`, beside `test1/`
with images of unknown class; Oxford's pets: `Abyssinian_1.jpg`.  The folder of images may also be
the root itself.
"""

import os
import pathlib
import re

from alexnet_jax.data.listing import LabeledFiles, Listing
from alexnet_jax.data.split_files import NAMES, TEST, TRAIN, VALIDATION
from alexnet_jax.errors import UserError

_STEM = re.compile(r'(.+)[._]\d+')


def class_of(file: str) -> str | None:
  """The class that a file's name says, or None."""
  match = _STEM.fullmatch(os.path.splitext(os.path.basename(file))[0])
  return match[1] if match else None


def by_class(files: list[str]) -> tuple[dict[str, list[str]], list[str]]:
  """Files by the class in their names, and files whose names have none."""
  classes: dict[str, list[str]] = {}
  unnamed: list[str] = []
  for file in files:
    name = class_of(file)
    if name is None:
      unnamed.append(file)
    else:
      classes.setdefault(name, []).append(file)
  return classes, unnamed


def read_flat(root: pathlib.Path, listing: Listing) -> LabeledFiles | None:
  """Classes from the names of files, where one folder holds images of at least two.

  Args:
    root: the folder of the data set, for messages.
    listing: what is in it.

  Returns:
    None: there is no folder of such images alone, in train/ or at the top.

  Raises:
    UserError: some names say a class and some do not, or it is not clear what a folder is for.
  """
  top_files, top = listing.children()
  for folder in ('', *(name for name in sorted(top) if name.lower() in NAMES[TRAIN])):
    files, inner = listing.children(folder)
    train, unnamed = by_class(files)
    if len(train) > 1 and not any(inner.values()):
      break
  else:
    return None
  validation, validation_folder, unclear = {}, '', ''
  to_validate = (*NAMES[VALIDATION], *NAMES[TEST])
  ignored = [f'{len(top_files):,} image(s) beside {folder}/'] if folder and top_files else []
  for name in sorted(top) if folder else ():
    files, inner = listing.children(name)
    classes, others = by_class(files)
    if name == folder or not top[name]:
      continue
    elif name.lower() in to_validate and not others and not any(inner.values()):
      validation, validation_folder = classes, name
    elif name.lower().startswith('test'):
      of = ' of unknown class' if others else ''
      ignored.append(f'{name}/ with {len(top[name]):,} images{of}')
    else:
      unclear = unclear or name
  if unnamed and unclear:
    return None  # folders of classes, one of them called train/
  if unnamed:
    raise UserError(
      f'{root / folder} has {sum(map(len, train.values())):,} images called'
      f' <class>.<number>.<extension> and {len(unnamed):,} whose names say no class, such as'
      f' {os.path.basename(unnamed[0])}: rename or remove these, or put the images of each class in'
      ' a folder of its own'
    )
  if unclear:
    raise UserError(
      f'{root} has {folder}/, with images called <class>.<number>.<extension>, and {unclear}/'
      ' beside it: if those are validation images, call the folder validation/ and its images'
      f' {next(iter(train))}.0.jpg and so on; otherwise move it elsewhere'
    )
  return LabeledFiles(dict(sorted(train.items())), validation, folder, validation_folder, ignored)
