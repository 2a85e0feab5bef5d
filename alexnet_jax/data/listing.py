"""Finds image files, and what else is in their folders."""

import collections
import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable, Iterable

from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand

TABLE = '.csv'


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is below a folder, or in an archive; all paths are relative to it.

  Attributes:
    files: image file -> what differs if it does, such as its size; sorted. A broken link that is
      named like an image has -1: it is an image that cannot be read.
    folders: every folder at any depth.
    tables: files at the top that end in `TABLE`.
    ignored: kind of entry -> how many there are, `tables` among them.
  """

  files: dict[str, str]
  folders: list[str]
  tables: list[str]
  ignored: collections.Counter[str]

  def children(self, folder: str = '') -> tuple[list[str], dict[str, list[str]]]:
    """Images in a folder itself, and its folders, each with the sorted images at any depth."""
    prefix = f'{folder}/' if folder else ''
    direct: list[str] = []
    below: dict[str, list[str]] = {}
    for name in self.folders:
      if name.startswith(prefix) and '/' not in name[len(prefix) :]:
        below[name[len(prefix) :]] = []
    for file in self.files:
      if file.startswith(prefix):
        head, slash, _ = file[len(prefix) :].partition('/')
        (below[head] if slash else direct).append(file)
    return direct, below


@dataclasses.dataclass(frozen=True)
class LabeledFiles:
  """Image files, relative to the root of a data set, by the name of their class.

  Attributes:
    train: class name -> its training files, in the order in which classes are numbered.
    validation: class name -> its validation files; empty: a part of `train` is to be held out.
    train_folder: where the training files are, '' if at the top.
    validation_folder: where the validation files are.
    ignored: what is not used, in words.
    tables: the files that say the classes, if names and folders do not.
  """

  train: dict[str, list[str]]
  validation: dict[str, list[str]]
  train_folder: str
  validation_folder: str
  ignored: list[str]
  tables: tuple[str, ...] = ()


def list_images(
  root: pathlib.Path,
  known: frozenset[str] = frozenset(),
  advance: Callable[[int], object] = lambda n: None,
) -> Listing:
  """Lists a folder at any depth. Links to folders are followed, except into one around them.

  Args:
    root: the folder.
    known: names of other files that are not to be counted as ignored.
    advance: is called with 1 after each image.

  Raises:
    UserError: a folder cannot be read, or a link is broken.
  """
  files: dict[str, str] = {}
  folders: list[str] = []
  tables: list[str] = []
  ignored: collections.Counter[str] = collections.Counter()

  def walk(folder: str, prefix: str, around: set[str]) -> None:
    for entry in list(os.scandir(folder)):
      path, is_image = prefix + entry.name, entry.name.lower().endswith(EXTENSIONS)
      if entry.name.startswith('.'):
        ignored['hidden'] += 1
      elif entry.is_symlink() and not os.path.exists(entry.path):
        if not is_image:
          raise UserError(f'{entry.path} is a broken link: repair or remove it')
        files[path] = '-1'
      elif entry.is_dir():
        real = os.path.realpath(entry.path)
        if real in around:
          ignored['link to a folder around it'] += 1
        else:
          folders.append(path)
          walk(entry.path, f'{path}/', around | {real})
      elif is_image and stat.S_ISREG((found := entry.stat()).st_mode):
        files[path] = str(found.st_size)
        advance(1)
      elif entry.name not in known:
        kind = os.path.splitext(entry.name)[1].lower()
        ignored[kind or 'without extension'] += 1
        if kind == TABLE and not prefix:
          tables.append(path)

  try:
    walk(os.fspath(root), '', {os.path.realpath(root)})
  except OSError as error:
    raise UserError(f'{root} cannot be read to its end: {error}') from error
  return Listing(dict(sorted(files.items())), folders, sorted(tables), ignored)


def find_images(arguments: Iterable[str]) -> list[pathlib.Path]:
  """The image files that words of a command mean.

  Args:
    arguments: files, taken as they are, and folders, of which all image files at any depth are
      taken in order of name.

  Raises:
    UserError: a folder has none.
  """
  found: list[pathlib.Path] = []
  for argument in arguments:
    path = expand(argument, 'image')
    if not path.is_dir():
      found.append(path)
      continue
    inside = list_images(path).files
    if not inside:
      raise UserError(f'the folder {path} has no images ({" ".join(EXTENSIONS)})')
    found += [path / file for file in inside]
  return found
