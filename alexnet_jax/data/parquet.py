"""Hugging Face's data sets of images as parquet files, and any others of that form.

Columns are an image, {bytes, path} or the bytes alone, and a label, a number or text. What the
data set's own description in the files calls image and label is taken, else columns that are named
so. Needs pyarrow, but neither a network nor the `datasets` package.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from alexnet_jax.data.class_numbers import LABEL_COLUMNS
from alexnet_jax.data.examples import Source, damaged
from alexnet_jax.data.packed import Listed, packed_source, place
from alexnet_jax.data.split_files import find_splits
from alexnet_jax.errors import UserError

IMAGE_COLUMNS = ('image', 'img', 'jpg', 'jpeg', 'png', 'webp')
_ROWS = 64  # that are in memory at a time


@dataclasses.dataclass(frozen=True)
class ParquetImages:
  """The images of parquet files, which are read from the beginning of a file on.

  Attributes:
    files: paths.
    counts: rows in each.
    column: where the bytes are, 'image.bytes' or 'image'.
  """

  files: tuple[str, ...]
  counts: tuple[int, ...]
  column: str

  def stream(self, number: int, start: int = 0) -> Iterator[bytes]:
    """The images of a file from row `start` on; b'' of a row without one.

    Raises:
      UserError: it cannot be read to its end.
    """
    path, done = self.files[number], 0
    with _opened(path) as file:
      groups: list[int] = []
      for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if groups or done + rows > start:
          groups.append(group)
        else:
          done += rows
      for batch in file.iter_batches(_ROWS, groups, [self.column], use_threads=False):
        column = batch.column(0)
        while not _is_bytes(column.type):
          (column,) = column.flatten()
        for value in column:
          if done >= start:
            yield value.as_py() or b''
          done += 1
      if done != self.counts[number]:
        raise OSError(f'{done:,} rows instead of {self.counts[number]:,}')

  def read(self, index: int) -> bytes:
    return next(self.stream(*place(self.counts, index)))

  def name(self, index: int) -> str:
    number, row = place(self.counts, index)
    return f'{self.files[number]}, image {row}'


def open_parquet(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  validation_fraction: float,
  advance: Callable[[int], object],
) -> Source:
  """Opens the parquet files in `paths`; other arguments as of `folder_formats.open_images`.

  Raises:
    UserError: pyarrow is not installed, a file is damaged or missing, or it is not clear which
      columns are image and label.
  """
  used, ignored = find_splits(root, paths)
  with _opened(used['train'][0]) as file:
    columns = _find_columns(used['train'][0], file.schema_arrow)
  facts = hashlib.sha256()
  listed = {split: _list_split(found, columns, facts, advance) for split, found in used.items()}
  return packed_source(
    'parquet files as of Hugging Face',
    root,
    listed,
    columns.names,
    validation_fraction,
    facts=facts.hexdigest(),
    ignored=ignored,
  )


@dataclasses.dataclass(frozen=True)
class _Columns:
  data: str
  path: str
  label: str
  names: tuple[str, ...]  # of the classes


def _find_columns(path: pathlib.Path, schema: Any) -> _Columns:
  """Which columns are what; `path` is '' where images have no names."""
  features = _described(schema)
  image = _choose(path, schema, features, 'Image', IMAGE_COLUMNS)
  label = _choose(path, schema, features, 'ClassLabel', LABEL_COLUMNS)
  kind, names = schema.field(image).type, features.get(label, {}).get('names') or ()
  if isinstance(names, dict):  # {'0': name}, as in a README
    names = tuple(names.values())
  parts = {kind.field(i).name for i in range(kind.num_fields)} if kind.num_fields else set()
  if not _is_bytes(kind) and 'bytes' not in parts:
    raise UserError(
      f'{path}: its column {image!r} is {kind}, allowed are the bytes of an image file, or a struct'
      ' that has them as `bytes`'
    )
  return _Columns(
    f'{image}.bytes' if parts else image,
    f'{image}.path' if 'path' in parts else '',
    label,
    tuple(map(str, names)),
  )


def _described(schema: Any) -> dict[str, dict[str, Any]]:
  """What the `datasets` package wrote of the columns, none if it did not write the file."""
  try:
    features = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
    return {name: value for name, value in features.items() if isinstance(value, dict)}
  except (KeyError, TypeError, ValueError, AttributeError):
    return {}


def _choose(
  path: pathlib.Path, schema: Any, features: dict, kind: str, usual: Sequence[str]
) -> str:
  described = [name for name in schema.names if features.get(name, {}).get('_type') == kind]
  named = [name for name in usual if name in (described or schema.names)]
  if named or len(described) == 1:
    return (named or described)[0]
  raise UserError(
    f'{path} has the columns {", ".join(schema.names)[:300]}: which of them is the'
    f' {"image" if kind == "Image" else "label"}? call it {usual[0]!r}'
  )


def _list_split(
  paths: Sequence[pathlib.Path], columns: _Columns, facts: Any, advance: Callable[[int], object]
) -> Listed:
  labels: list[int | str | None] = []
  names: list[str] = []
  counts = []
  wanted = [column for column in (columns.label, columns.path) if column]
  for path in paths:
    with _opened(path) as file:
      if missing := {columns.data.split('.')[0], columns.label} - set(file.schema_arrow.names):
        raise UserError(
          f'{path} has no column {min(missing)!r}, as other files here have: move it elsewhere'
        )
      table = file.read(wanted, use_threads=False)
      found = table.column(columns.label).to_pylist()
      wrong = (value for value in found if not isinstance(value, int | str | None))
      if (value := next(wrong, None)) is not None:
        raise UserError(
          f'{path}: its column {columns.label!r} has {str(value)[:60]!r}, allowed are whole numbers'
          ' and text'
        )
      labels += found
      if columns.path:
        (column,) = table.column(columns.path.split('.')[0]).flatten()
        names += (name or '' for name in column.to_pylist())
      else:
        names += [''] * len(found)
      counts.append(len(found))
      advance(len(found))
      facts.update(f'{path.name}\0{path.stat().st_size}\0{_footer(path)}\n'.encode())
  images = ParquetImages(tuple(map(str, paths)), tuple(counts), columns.data)
  return Listed(images, labels, names)


def _footer(path: pathlib.Path) -> str:
  """SHA-256 of the end of a file, which has the sizes and the extremes of all its pieces."""
  with open(path, 'rb') as file:
    file.seek(-8, 2)
    size = int.from_bytes(file.read(4), 'little')
    file.seek(-8 - size, 2)
    return hashlib.sha256(file.read()).hexdigest()


def _is_bytes(kind: Any) -> bool:
  types = _pyarrow().types
  return types.is_binary(kind) or types.is_large_binary(kind)


@contextlib.contextmanager
def _opened(path: str | pathlib.Path) -> Iterator[Any]:
  """A `pyarrow.parquet.ParquetFile`, whose errors while it is used are in one line."""
  arrow = _pyarrow()
  try:
    with arrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
      yield file
  except (OSError, ValueError, arrow.ArrowException) as error:  # also of text and sizes
    raise damaged(path, 'parquet', error) from error


def _pyarrow() -> ModuleType:
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      "reading parquet files needs pyarrow: pip install 'alexnet_jax[parquet]'"
    ) from error
  return pyarrow
