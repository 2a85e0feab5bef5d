"""Zip archives of images, which are read where they are; nothing is unpacked.

What is in an archive is taken as a folder of the same files would be, see `image_folder`. Folders
that hold all of its images do not count, and tables in them are at the top. Of several archives,
each is a folder of its name: `train.zip`.
"""

import collections
import dataclasses
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence

from alexnet_jax.data import imagenet
from alexnet_jax.data.examples import Source, damaged
from alexnet_jax.data.image_folder import label_files
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.listing import TABLE, Listing
from alexnet_jax.data.packed import read_piece
from alexnet_jax.errors import UserError

_HEADER = struct.Struct('<26xHH')  # of a file in an archive: bytes of its name and of what follows
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_MOST_DEFLATED = 1032  # bytes that deflate makes of one


@dataclasses.dataclass(frozen=True)
class Archives:
  """The files in zip archives.

  Attributes:
    paths: of the archives.
    places: file -> number of its archive, where it begins, its bytes there and when unpacked, how
      it is packed, CRC32.
  """

  paths: tuple[str, ...]
  places: dict[str, tuple[int, int, int, int, int, int]]

  def name(self, file: str) -> str:
    return f'{self.paths[self.places[file][0]]}/{file}'

  def read(self, file: str) -> bytes:
    """Reads one file.

    Raises:
      UserError: the archive is gone, or was cut off.
      OSError: this file is damaged.
    """
    archive, start, packed, size, method, crc = self.places[file]
    path = self.paths[archive]
    header = _HEADER.size + sum(_HEADER.unpack(read_piece(path, start, _HEADER.size)))
    data = read_piece(path, start + header, packed)
    try:
      if method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
      if len(data) != size or zlib.crc32(data) != crc:
        raise zlib.error('its checksum does not agree')
    except zlib.error as error:
      raise OSError(f'{self.name(file)} is damaged: {error}') from error
    return data


def open_zips(
  root: pathlib.Path, paths: Sequence[pathlib.Path], validation_fraction: float
) -> Source:
  """Opens the archives in `paths`; other arguments as of `folder_formats.open_images`.

  Raises:
    UserError: an archive is damaged, encrypted or packed in a way that is not known; or as
      `image_folder.label_files`.
  """
  listing, content = _list(paths)
  if not listing.files:
    kinds = ', '.join(f'{count:,} {kind}' for kind, count in sorted(listing.ignored.items()))
    raise UserError(
      f'{root} has no images ({" ".join(EXTENSIONS)}), but {kinds or "nothing"}: where those are'
      ' archives, unpack it and give their folder'
    )
  title = f'zip file{"s" * (len(paths) > 1)}, at {root}: '
  return label_files(root.resolve().name, root, content, listing, validation_fraction, title)


def _list(paths: Sequence[pathlib.Path]) -> tuple[Listing, Archives]:
  files, tables, ignored = dict[str, str](), list[str](), collections.Counter[str]()
  places: dict[str, tuple[int, int, int, int, int, int]] = {}
  for number, path in enumerate(paths):
    images, csvs = dict[str, zipfile.ZipInfo](), dict[str, zipfile.ZipInfo]()
    for name, entry in _entries(path).items():
      kind = os.path.splitext(name)[1].lower()
      if any(part.startswith('.') or part == '__MACOSX' for part in name.split('/')):
        ignored['hidden'] += 1
      elif kind in EXTENSIONS:
        images[name] = entry
      elif os.path.basename(name) not in imagenet.KNOWN_FILES:
        ignored[kind or 'without extension'] += 1
        if kind == TABLE and len(paths) == 1:
          csvs[name] = entry
    around = os.path.commonpath(map(os.path.dirname, images)) if images else ''
    for name, entry in (images | csvs).items():
      if name in images:
        file = name[len(around) + 1 if around else 0 :]
        file = f'{path.stem}/{file}' if len(paths) > 1 else file
        files[file] = f'{entry.file_size} {entry.CRC}'
      elif f'/{around}/'.startswith(f'/{os.path.dirname(name)}/'.replace('//', '/')):
        file = os.path.basename(name)
        tables.append(file)
      else:
        continue
      sizes = entry.compress_size, entry.file_size
      places[file] = number, entry.header_offset, *sizes, entry.compress_type, entry.CRC
  folders = {os.path.dirname(file) for file in files}
  for folder in list(folders):
    while folder := os.path.dirname(folder):
      folders.add(folder)
  listing = Listing(dict(sorted(files.items())), sorted(folders - {''}), sorted(tables), ignored)
  return listing, Archives(tuple(map(str, paths)), places)


def _entries(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
  """The files in an archive, by their paths with `/`."""
  try:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
      found = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in found:
      place = max(entry.header_offset, entry.compress_size)
      if entry.header_offset < 0 or place > size or entry.file_size > _MOST_DEFLATED * size:
        raise zipfile.BadZipFile('a size in it is larger than the file')
  except Exception as error:  # zipfile fails in many ways on damaged bytes
    raise damaged(path, 'zip', error) from error
  entries: dict[str, zipfile.ZipInfo] = {}
  for entry in found:
    encrypted, method = entry.flag_bits & _ENCRYPTED, entry.compress_type
    if encrypted or method not in _METHODS:
      raise UserError(
        f'{path}: {entry.filename!r:.80} is {"encrypted" if encrypted else f"of method {method}"},'
        ' allowed are stored and deflated files: pack it again'
      )
    name = os.path.normpath(entry.filename.replace('\\', '/')).lstrip('/')
    if name in entries:
      raise UserError(f'{path} has two files {name!r:.80}: pack it again')
    entries[name] = entry
  return entries
