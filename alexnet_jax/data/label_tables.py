"""Tables of image files and their labels, as Kaggle's contests have them: `train.csv`.

  image_id,label
  1000015157,0

The columns are known by their names, or there are two; without a header by the ending of the first
file. A file may be given without its folder or its ending, and with the folders of another machine.
`train.csv` and `val.csv` are the splits; a single table is of the training images.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

from alexnet_jax.data.class_numbers import LABEL_COLUMNS, in_order
from alexnet_jax.data.images import EXTENSIONS
from alexnet_jax.data.listing import LabeledFiles, Listing
from alexnet_jax.data.split_files import TRAIN, find_splits
from alexnet_jax.errors import UserError

FILE_COLUMNS = (
  *('file', 'filename', 'filepath', 'path', 'image', 'imagefile', 'imagename', 'imagepath'),
  *('imageid', 'img', 'id'),
)
_ADVICE = 'correct the table, or move it elsewhere if folders or names are to say the classes'


@dataclasses.dataclass(frozen=True)
class _Row:
  """A row of a table.

  Attributes:
    table: name of the table.
    line: where in there.
    name: what it calls an image.
    label: the image's class.
    split: that the table is of.
    file: the image, None if there is none or several are called so.
  """

  table: str
  line: int
  name: str
  label: str
  split: str = TRAIN
  file: str | None = None


def read_tables(
  root: pathlib.Path,
  read: Callable[[str], bytes],
  listing: Listing,
  facts: dict[str, str],
  table: str = '',
) -> LabeledFiles | None:
  """Classes from tables of files and labels, where the images lie in a folder without classes.

  Args:
    root: the data set, for messages.
    read: reads a file.
    listing: what is in it.
    facts: what differs when a file does, to which labels are added.
    table: the only table to be read; '' for those at the top.

  Returns:
    None: there is no such table, or folders may be classes.

  Raises:
    UserError: a table names a file that is not there, or one twice, or cannot be read.
  """
  rows = _find_rows(root, read, listing, table)
  if not rows:
    return None
  taken, classes, unlabeled = dict[str, _Row](), dict[str, dict[str, list[str]]](), 0
  for row in rows:
    where = f'{root / row.table}, line {row.line}: {row.name!r:.80}'
    if not row.file:
      raise UserError(f'{where} is not below {root}, or several are called so: {_ADVICE}')
    if row.file in taken:
      other = taken[row.file]
      raise UserError(f'{where} is in {other.table}, line {other.line}, as well: {_ADVICE}')
    taken[row.file] = row
    facts[row.file] += f' {row.label}'
    part = classes.setdefault(row.split, {})
    if row.label:
      part.setdefault(row.label, []).append(row.file)
    else:
      unlabeled += 1
  train_table, *_ = used = tuple(dict.fromkeys(row.table for row in rows))
  if not (train := classes.pop(TRAIN, {})):
    raise UserError(f'{root / train_table} has no training image with a label: is it all there?')
  validation = next(iter(classes.values()), {})
  ignored = [f'{unlabeled:,} image(s) without a label'] if unlabeled else []
  if others := len(listing.files) - len(taken):
    ignored.append(f'{others:,} image(s) that are not in {" or ".join(used)}')
  return LabeledFiles(_in_order(train), _in_order(validation), train_table, used[-1], ignored, used)


def _in_order(files: dict[str, list[str]]) -> dict[str, list[str]]:
  """Classes in the order of their numbers, with their files in that of names."""
  return {label: sorted(files[label]) for label in in_order(files.keys())}


def _find_rows(
  root: pathlib.Path, read: Callable[[str], bytes], listing: Listing, table: str
) -> list[_Row]:
  """The rows of tables of training and validation images; none if folders may be classes."""
  if table:
    if not (rows := _read(root / table, read)):
      raise UserError(
        f'{root / table} has no columns of files and labels: call them file and label, with a comma'
        ' between them'
      )
    splits = {TRAIN: [root / table]}
  else:
    found = {name: _read(root / name, read) for name in listing.tables}
    paths = [root / name for name in found if found[name] and 'submission' not in name.lower()]
    splits = find_splits(root, paths)[0] if paths else {}
    rows = [row for paths in splits.values() for path in paths for row in found[path.name]]
  split_of = {path.name: split for split, paths in splits.items() for path in paths}
  files = _Files(listing.files)
  rows = [
    dataclasses.replace(row, split=(split := split_of[row.table]), file=files.find(row.name, split))
    for row in rows
  ]
  if table:
    return rows
  folders = {(row.table, os.path.dirname(row.file)) for row in rows if row.file}
  tables = {name for name, _ in folders}  # others are of something else
  return [row for row in rows if row.table in tables] if len(folders) == len(tables) else []


def _read(path: pathlib.Path, read: Callable[[str], bytes]) -> list[_Row]:
  """The rows of a table; none if it is no table of files and labels."""
  try:
    text = read(path.name).decode('utf-8-sig', 'surrogateescape')
    first = text.partition('\n')[0]
    reader = csv.reader(text.splitlines(), delimiter=max(',;\t', key=first.count))
    rows = [([cell.strip() for cell in row], reader.line_num) for row in reader if any(row)]
  except (csv.Error, OSError) as error:
    raise UserError(f'{path} cannot be read as a table ({error}): {_ADVICE}') from error
  if not rows or not (columns := _columns(rows[0][0])):
    return []
  image, label = columns
  is_header = not rows[0][0][image].lower().endswith(EXTENSIONS)
  for row, line in rows:
    if len(row) <= max(columns):
      raise UserError(f'{path}, line {line} has {len(row)} column(s) in place of {len(rows[0][0])}')
  return [_Row(path.name, line, row[image], row[label]) for row, line in rows[is_header:]]


def _columns(first: list[str]) -> tuple[int, int] | None:
  """Where files and labels are; None if that is not clear."""
  names = [cell.lower().replace('_', '').replace(' ', '') for cell in first]
  images = [i for i, cell in enumerate(names) if cell.endswith(EXTENSIONS)]
  images = images or [names.index(name) for name in FILE_COLUMNS if name in names]
  labels = [names.index(name) for name in LABEL_COLUMNS if name in names]
  if images and len(names) == 2:
    labels = [1 - images[0]]
  return (images[0], labels[0]) if images and labels else None


class _Files:
  """Finds image files by what tables call them."""

  def __init__(self, files: Mapping[str, object]):
    self._by_name: dict[str, list[tuple[str, str]]] = {}
    for file in files:
      for path in {file, os.path.splitext(file)[0]}:
        self._by_name.setdefault(os.path.basename(path), []).append((f'/{path}', file))

  def find(self, name: str, split: str) -> str | None:
    """The file, of several the one in a folder of the split; None if there is none, or several."""
    wanted = '/' + name.replace('\\', '/').removeprefix('./')
    named = self._by_name.get(os.path.basename(wanted), ())
    found = [(p, f) for p, f in named if p.endswith(wanted) or wanted.endswith(p)]
    for only in (
      found,
      [(path, file) for path, file in found if file.lower().startswith(split[:3])],
      [(path, file) for path, file in found if path == wanted],
    ):
      if len(only) == 1:
        return only[0][1]
    return None
