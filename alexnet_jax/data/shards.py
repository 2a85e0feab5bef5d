"""WebDataset shards: tar files in which files that differ in extension alone are a sample.

`000123.jpg` with `000123.cls`, a number or text, or with `000123.json`, whose `label` it is, and
whose `filename`, if it has one, the image's name. Names of the classes are read from a
`classnames.txt` beside the shards. A shard is read once, as a stream, to list it; images are then
read from their places. So it must not be compressed.
"""

import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from alexnet_jax.data.examples import Source, damaged
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.packed import Listed, Pieces, packed_source
from alexnet_jax.data.split_files import find_splits
from alexnet_jax.errors import UserError

CLASS_NAMES = 'classnames.txt'
_LABELS = ('cls', 'label', 'json')
_MOST_LABEL_BYTES = 1 << 20  # what is larger is no label


def open_shards(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  validation_fraction: float,
  advance: Callable[[int], object],
) -> Source:
  """Opens the shards in `paths`; other arguments as of `folder_formats.open_images`.

  Raises:
    UserError: a shard is compressed, damaged or missing, or holds no labeled images.
  """
  used, ignored = find_splits(root, paths)
  facts: list[str] = []
  listed = {split: _list_split(found, facts, ignored, advance) for split, found in used.items()}
  file = root / CLASS_NAMES
  names = file.read_text(errors='replace').splitlines() if file.is_file() else []
  return packed_source(
    'WebDataset shards',
    root,
    listed,
    names,
    validation_fraction,
    facts=hashlib.sha256('\n'.join([*facts, *names]).encode()).hexdigest(),
    ignored=ignored,
  )


def _list_split(
  paths: Sequence[pathlib.Path],
  facts: list[str],
  ignored: list[str],
  advance: Callable[[int], object],
) -> Listed:
  starts, sizes, labels, names, lost = [], [], [], [], 0
  for path in paths:
    pieces = []
    for key, sample in _samples(path):
      if 'image' in sample:
        pieces.append(sample['image'])
        labels.append(sample.get('label'))
        names.append(sample.get('filename', key))
        advance(1)
      else:
        lost += 1
    if not pieces:
      raise UserError(
        f'{path} has no images ({" ".join(EXTENSIONS)}), so it is no shard of images: give data.dir'
        ' a folder of such shards; the archives of ImageNet itself are read by'
        ' --config.data.source=tfds'
      )
    places = np.array(pieces, np.int64)
    starts.append(places[:, 0].copy())
    sizes.append(places[:, 1].copy())
    facts.append(f'{path.name} {path.stat().st_size} {places.tolist()}')
  if lost:
    ignored.append(f'{lost:,} sample(s) without an image')
  titles = tuple(map(str, paths))
  return Listed(Pieces(titles, titles, tuple(starts), tuple(sizes)), labels, names)


def _samples(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """Name, and `image`, the place and size in bytes of a file, `label` and `filename`, of samples.

  Raises:
    UserError: the shard is cut short or damaged, or a sample has two images.
  """
  key, sample = None, dict[str, object]()
  for member, content in _members(path):
    folder, slash, name = member.name.rpartition('/')
    stem, _, kind = name.partition('.')
    kind = kind.lower()
    if f'{folder}{slash}{stem}' != key:
      if sample:
        yield str(key), sample
      key, sample = f'{folder}{slash}{stem}', {}
    if f'.{kind}' in EXTENSIONS:
      if 'image' in sample:
        raise UserError(
          f'{path}: the sample {key} has two images, one of them {member.name}: repack it'
        )
      sample['image'] = member.offset_data, member.size
    elif kind in _LABELS:
      try:
        said = _said(kind, content)
      except (ValueError, RecursionError) as error:
        raise UserError(
          f'{path}: {member.name} is no label ({" ".join(str(error).split())[:200]}): allowed are a'
          ' whole number or text, or JSON with one as `label`; repack the shard'
        ) from error
      sample = said | sample
  if sample:
    yield str(key), sample


def _said(kind: str, content: bytes) -> dict[str, object]:
  """What the file of a label says: `label`, and `filename` of the image, if they are there."""
  text = content.decode().strip()
  if kind != 'json':
    number = text.isascii() and text.removeprefix('-').isdecimal()
    return {'label': int(text) if number else text} if text else {}
  found = json.loads(text)
  if not isinstance(found, dict):
    found = {'label': found}
  said = {'label': found.get('label', found.get('cls')), 'filename': found.get('filename')}
  if not isinstance(said['label'], int | str | None):
    raise ValueError(f'its label is {said["label"]!r:.60}')
  if not isinstance(said['filename'], str):
    del said['filename']
  return {key: value for key, value in said.items() if value is not None}


def _members(path: pathlib.Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
  """The files in an archive, and what those of labels hold."""
  end = 0
  try:
    with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
      while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept
        if member.size < 0 or member.offset < end:
          raise tarfile.ReadError('a header is damaged')
        end = member.offset_data + member.size if member.isreg() else member.offset_data
        if member.isreg() and not member.issparse():
          is_label = member.name.lower().endswith(_LABELS) and member.size <= _MOST_LABEL_BYTES
          content = os.pread(file.fileno(), member.size, member.offset_data) if is_label else b''
          if is_label and len(content) != member.size:
            raise tarfile.ReadError('unexpected end of data')
          yield member, content
      # tarfile takes the end of a file, and what is no header, for the end of the archive.
      file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
      if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError('it does not end as an archive does')
  except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
    raise damaged(path, 'tar', error) from error
