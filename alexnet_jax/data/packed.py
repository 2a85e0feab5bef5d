"""Data sets whose images are packed into larger files: what their readers share.

A reader lists each split once, as `Listed`: the label and name of each image, and `Images`, from
which worker processes read them by index. `packed_source` makes a `Source` of that: it numbers the
classes and holds out validation images where there are none.
"""

import bisect
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from alexnet_jax.data import imagenet
from alexnet_jax.data.class_numbers import number_classes
from alexnet_jax.data.examples import Example, Source, gone
from alexnet_jax.data.image_folder import split_class
from alexnet_jax.data.split_files import TRAIN
from alexnet_jax.errors import UserError


class Images(Protocol):
  """Encoded images by index. Picklable: worker processes read through it."""

  def __len__(self) -> int: ...

  def read(self, index: int) -> bytes: ...

  def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Pieces:
  """Images that lie as they are in uncompressed files.

  Attributes:
    files: paths of the files.
    titles: what to call each of them.
    starts: for each file, where its images begin: int64 (n,).
    sizes: for each file, bytes of its images: int64 (n,).
  """

  files: tuple[str, ...]
  titles: tuple[str, ...]
  starts: tuple[np.ndarray, ...]
  sizes: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return sum(map(len, self.starts))

  def read(self, index: int) -> bytes:
    file, row = place(tuple(map(len, self.starts)), index)
    return read_piece(self.files[file], int(self.starts[file][row]), int(self.sizes[file][row]))

  def name(self, index: int) -> str:
    file, row = place(tuple(map(len, self.starts)), index)
    return f'{self.titles[file]}, image {row}'


@dataclasses.dataclass(frozen=True)
class Listed:
  """What a reader found of a split.

  Attributes:
    images: reads them.
    labels: for each image what its file says; None, or -1, if its class is not known.
    names: for each image its former file name, '' if that is not known.
  """

  images: Images
  labels: Sequence[int | str | None]
  names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class PackedSplit:
  """`rows` of `images`, which show the classes `labels`."""

  images: Images
  rows: tuple[int, ...]
  labels: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    row = self.rows[index]
    return Example(self.images.read(row), self.labels[index], self.images.name(row))


def place(counts: Sequence[int], index: int) -> tuple[int, int]:
  """The file that holds an image, and its place in there; `counts` are images in each file."""
  ends = list(itertools.accumulate(counts))
  file = bisect.bisect_right(ends, index)
  return file, index - (ends[file] - counts[file])


def read_piece(path: str, start: int, size: int) -> bytes:
  """Reads so many bytes of a file.

  Raises:
    UserError: it is gone or was cut off.
  """
  try:
    with open(path, 'rb') as opened:
      data = os.pread(opened.fileno(), size, start)
    if len(data) != size:
      raise OSError('it was cut off')
  except OSError as error:
    raise gone(path, error) from error
  return data


def packed_source(
  title: str,
  root: pathlib.Path,
  listed: Mapping[str, Listed],
  names: Sequence[str],
  validation_fraction: float,
  *,
  facts: str,
  ignored: Sequence[str] = (),
) -> Source:
  """The data set of what a reader found.

  Args:
    title: what kind of data set this is, for the user.
    root: its folder or file.
    listed: the splits: 'train', and 'validation' or 'test' if there are any.
    names: names of the classes in the order of their numbers, if the files have some.
    validation_fraction: part of each class to hold out where there are no validation images.
    facts: what differs when images differ, such as the sizes of their files.
    ignored: what is not used, in words.

  Raises:
    UserError: no image has a label, or labels contradict names or each other.
  """
  ignored = list(ignored)
  train, other = listed[TRAIN], next((name for name in listed if name != TRAIN), '')
  if other and set(listed[other].labels) <= {None, -1}:
    ignored.append(f'{len(listed[other].labels):,} {other} images, which have no labels')
    other = ''
  validation = listed[other] if other else Listed(train.images, (), ())
  classes = number_classes(
    root, (train.labels, train.names), (validation.labels, validation.names), names
  )
  train_rows, eval_rows = (classes.rows(part.labels) for part in (train, validation))
  if not train_rows:
    raise UserError(f'{root} has no training image with a label: are all its files there?')
  if without := len(train.labels) + len(validation.labels) - len(train_rows) - len(eval_rows):
    ignored.append(f'{without:,} image(s) without a label')
  if not other:
    train_rows, eval_rows = _split_rows(train_rows, classes.names, validation_fraction)
  train_split = PackedSplit(train.images, tuple(train_rows), tuple(train_rows.values()))
  eval_split = PackedSplit(validation.images, tuple(eval_rows), tuple(eval_rows.values()))
  named = '\n'.join([facts, *train.names, *validation.names])
  digest = hashlib.sha256(named.encode(errors='surrogateescape'))
  for split in (train_split, eval_split):
    digest.update(np.array([split.rows, split.labels], np.int64).tobytes())
  found = (
    f'{title}, at {root}: {len(train_rows):,} training and {len(eval_rows):,} validation images'
    f' ({other or f"{validation_fraction:g} of each class"}) of {len(classes.names):,}'
    f' classes{classes.remark}'
  )
  return Source(
    root.resolve().name,
    classes.names,
    train_split,
    eval_split,
    f'packed, {len(train_rows)} + {len(eval_rows)} images, sha256 {digest.hexdigest()}',
    classes.words or imagenet.class_names(classes.names, [root]),
    f'{found}; ignored: {", ".join(ignored)}' if ignored else found,
  )


def _split_rows(
  rows: dict[int, int], names: Sequence[str], fraction: float
) -> tuple[dict[int, int], dict[int, int]]:
  by_class: dict[int, list[int]] = {}
  for row, number in rows.items():
    by_class.setdefault(number, []).append(row)
  chosen: set[int] = set()
  for number, mine in by_class.items():
    chosen.update(split_class(names[number], mine, fraction)[1])
  kept = {row: number for row, number in rows.items() if row not in chosen}
  return kept, {row: number for row, number in rows.items() if row in chosen}
