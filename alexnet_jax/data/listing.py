"""Lists the image files below a folder, and what else is there."""

import collections
import dataclasses
import os
import pathlib
import stat

from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.errors import UserError


@dataclasses.dataclass
class Listing:
  """What is below a folder; all paths are relative to it.

  Attributes:
    files: image file -> bytes, sorted. A broken link that is named like an image has -1: it is an
      image that cannot be read.
    folders: every folder at any depth.
    broken: other broken links.
    ignored: kind of entry -> how many there are.
  """

  files: dict[str, int] = dataclasses.field(default_factory=dict)
  folders: list[str] = dataclasses.field(default_factory=list)
  broken: list[str] = dataclasses.field(default_factory=list)
  ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

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
    UserError: a folder cannot be read.
  """
  found = Listing()
  try:
    _walk(os.fspath(root), '', (_identity(os.stat(root)),), known, found)
  except OSError as error:
    raise UserError(f'{root} cannot be read to its end: {error}') from error
  found.files = dict(sorted(found.files.items()))
  return found


def _walk(
  folder: str,
  prefix: str,
  around: tuple[tuple[int, int], ...],
  known: frozenset[str],
  found: Listing,
) -> None:
  with os.scandir(folder) as entries:
    for entry in entries:
      path, is_image = prefix + entry.name, entry.name.lower().endswith(EXTENSIONS)
      if entry.name.startswith('.'):
        found.ignored['hidden'] += 1
        continue
      try:
        status = entry.stat()
      except OSError:
        if not entry.is_symlink():
          raise
        if is_image:
          found.files[path] = -1
        else:
          found.broken.append(path)
        continue
      if stat.S_ISDIR(status.st_mode):
        if _identity(status) in around:
          found.ignored['link to a folder around it'] += 1
          continue
        found.folders.append(path)
        _walk(entry.path, f'{path}/', (*around, _identity(status)), known, found)
      elif is_image and stat.S_ISREG(status.st_mode):
        found.files[path] = status.st_size
      elif entry.name not in known:
        found.ignored[os.path.splitext(entry.name)[1].lower() or 'without extension'] += 1


def _identity(status: os.stat_result) -> tuple[int, int]:
  return status.st_dev, status.st_ino
