"""Finds image files, and what else is in their folders."""

import collections
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterable

from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is below a folder; all paths are relative to it.

  Attributes:
    files: image file -> bytes, sorted. A broken link that is named like an image has -1: it is an
      image that cannot be read.
    folders: every folder at any depth.
    ignored: kind of entry -> how many there are.
  """

  files: dict[str, int]
  folders: list[str]
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


def list_images(root: pathlib.Path, known: frozenset[str] = frozenset()) -> Listing:
  """Lists a folder at any depth. Links to folders are followed, except into one around them.

  Args:
    root: the folder.
    known: names of other files that are not to be counted as ignored.

  Raises:
    UserError: a folder cannot be read, or a link is broken.
  """
  files: dict[str, int] = {}
  folders: list[str] = []
  ignored: collections.Counter[str] = collections.Counter()

  def walk(folder: str, prefix: str, around: set[str]) -> None:
    for entry in list(os.scandir(folder)):
      path, is_image = prefix + entry.name, entry.name.lower().endswith(EXTENSIONS)
      if entry.name.startswith('.'):
        ignored['hidden'] += 1
      elif entry.is_symlink() and not os.path.exists(entry.path):
        if not is_image:
          raise UserError(f'{entry.path} is a broken link: repair or remove it')
        files[path] = -1
      elif entry.is_dir():
        real = os.path.realpath(entry.path)
        if real in around:
          ignored['link to a folder around it'] += 1
        else:
          folders.append(path)
          walk(entry.path, f'{path}/', around | {real})
      elif is_image and stat.S_ISREG(entry.stat().st_mode):
        files[path] = entry.stat().st_size
      elif entry.name not in known:
        ignored[os.path.splitext(entry.name)[1].lower() or 'without extension'] += 1

  try:
    walk(os.fspath(root), '', {os.path.realpath(root)})
  except OSError as error:
    raise UserError(f'{root} cannot be read to its end: {error}') from error
  return Listing(dict(sorted(files.items())), folders, ignored)


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
