"""Tables of image files and their labels, as Kaggle's contests have them: `train.csv`.

  image_id,label
  1000015157,0

The columns are known by their names, or there are two; without a header by the ending of the first
file. A file may be given without its folder or its ending, and with the folders of another machine.
`train.csv` and `val.csv` are the splits; a single table is of the training images.
"""

import csv
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
_Row = tuple[str, str, int]  # file, label, line


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
  tables = [table] if table else listing.tables
  found = {name: _rows(root / name, read) for name in tables}
  found = {name: rows for name, rows in found.items() if rows and 'submission' not in name.lower()}
  if table and not found:
    raise UserError(
      f'{root / table} has no columns of files and labels: call them file and label, with a comma'
      ' between them'
    )
  if not found:
    return None
  splits = {TRAIN: [root / table]}
  if not table:
    splits, _ = find_splits(root, [root / name for name in found])
  files, taken, unlabeled = _Files(listing.files), dict[str, str](), 0
  paths = [(split, path) for split, mine in splits.items() for path in mine]
  rows = [
    (split, path, *row, files.find(row[0], split))
    for split, path in paths
    for row in found[path.name]
  ]
  folders = {(path, os.path.dirname(file)) for _, path, _, _, _, file in rows if file}
  if not table and len(folders) != len(paths):
    return None
  classes: dict[str, dict[str, list[str]]] = {split: {} for split in splits}
  for split, path, name, label, line, file in rows:
    where = f'{path}, line {line}: {name!r:.80}'
    if not file:
      raise UserError(f'{where} is not below {root}, or several are called so: {_ADVICE}')
    if file in taken:
      raise UserError(f'{where} is in {taken[file]} as well: {_ADVICE}')
    taken[file] = f'{path.name}, line {line},'
    facts[file] += f' {label}'
    if label:
      classes[split].setdefault(label, []).append(file)
    else:
      unlabeled += 1
  used, ignored = tuple(path.name for _, path in paths), []
  if unlabeled:
    ignored.append(f'{unlabeled:,} image(s) without a label')
  if others := len(listing.files) - len(taken):
    ignored.append(f'{others:,} image(s) that are not in {" or ".join(used)}')
  if not classes[TRAIN]:
    raise UserError(f'{splits[TRAIN][0]} has no image with a label: are all its lines there?')
  train, validation = (
    {label: sorted(part[label]) for label in in_order(part.keys())}
    for part in (classes.pop(TRAIN), classes.popitem()[1] if classes else {})
  )
  return LabeledFiles(train, validation, splits[TRAIN][0].name, used[-1], ignored, used)


_ADVICE = 'correct the table, or move it elsewhere if folders or names are to say the classes'


def _rows(path: pathlib.Path, read: Callable[[str], bytes]) -> list[_Row]:
  """File, label and line number of each row; none if it is no table of these."""
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
  return [(row[image], row[label], line) for row, line in rows[is_header:]]


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
