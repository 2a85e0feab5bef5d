"""Data sets whose images are packed into larger files: what their readers share.

A reader lists each split once, as `Listed`: the label and name of each image, and what reads them
by number. `packed_source` numbers the classes and makes a `Source` of that.
"""

import bisect
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alexnet_jax.data import imagenet
from alexnet_jax.data.class_numbers import number_classes
from alexnet_jax.data.examples import Source, gone
from alexnet_jax.data.labeled_split import ByClass, Images, make_source
from alexnet_jax.data.split_files import TRAIN
from alexnet_jax.errors import UserError


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
  parts, labeled = [], 0
  for part in (train, validation):
    rows: dict[str, list[int]] = {name: [] for name in classes.names}
    for row, label in enumerate(part.labels):
      if label not in (None, -1):
        rows[classes.names[classes.by_label[label]]].append(row)
        labeled += 1
    named = [f'{name} {label}' for name, label in zip(part.names, part.labels, strict=True)]
    parts.append(ByClass(part.images, rows, named))
  if not any(parts[0].keys.values()):
    raise UserError(f'{root} has no training image with a label: are all its files there?')
  if without := len(train.labels) + len(validation.labels) - labeled:
    ignored.append(f'{without:,} image(s) without a label')
  return make_source(
    root.resolve().name,
    'packed',
    *parts,
    validation_fraction=validation_fraction,
    validation_name=other,
    title=f'{title}, at {root}: ',
    remark=classes.remark,
    ignored=ignored,
    class_names=classes.words or imagenet.class_names(classes.names, [root]),
    facts=facts,
  )
