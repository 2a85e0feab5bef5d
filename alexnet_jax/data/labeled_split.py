"""Images of known classes as a data set: its splits, and what is said of it.

What reads a kind of data set lists its images by class, as `ByClass`; `make_source` makes a
`Source` of that, and holds out validation images where there are none.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from alexnet_jax.data import order
from alexnet_jax.data.examples import Example, Source
from alexnet_jax.errors import UserError


class Images(Protocol):
  """Encoded images by path or number. Picklable: worker processes read through it."""

  def read(self, key: Any) -> bytes: ...

  def name(self, key: Any) -> str: ...


@dataclasses.dataclass(frozen=True)
class LabeledSplit:
  """`keys[i]`, as `images` calls an image, shows class number `labels[i]`."""

  images: Images
  keys: tuple[Any, ...]
  labels: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.keys)

  def __getitem__(self, index: int) -> Example:
    """Reads one image.

    Raises:
      UserError: the disk is gone, so that no other image could be read either.
      OSError: this image cannot be read.
    """
    key = self.keys[index]
    return Example(self.images.read(key), self.labels[index], self.images.name(key))


@dataclasses.dataclass(frozen=True)
class ByClass:
  """The images of a split.

  Attributes:
    images: reads them.
    keys: class name -> what `images` calls its images.
    facts: image -> what differs if it does.
  """

  images: Images
  keys: Mapping[str, Sequence[Any]]
  facts: Any

  def split(self, classes: Sequence[str]) -> LabeledSplit:
    """The images in the order of their classes."""
    labels = {name: number for number, name in enumerate(classes)}
    found = [(key, labels[name]) for name in classes for key in self.keys.get(name, ())]
    return LabeledSplit(self.images, *map(tuple, zip(*found, strict=True)))


def make_source(
  name: str,
  kind: str,
  train: ByClass,
  validation: ByClass,
  *,
  validation_fraction: float,
  validation_name: str,
  title: str,
  remark: str,
  ignored: Sequence[str],
  class_names: tuple[str, ...],
  facts: str = '',
) -> Source:
  """The data set of images by class.

  Args:
    name: of the data set.
    kind: of what its images are in, for the fingerprint.
    train: its training images; the order of their classes is that of the class numbers.
    validation: its validation images, if there are any.
    validation_fraction: part of each class to hold out, in (0, 1), if there are none. Which images
      that are depends on nothing but their number and the name of the class.
    validation_name: where the validation images are, for the user.
    title: what this is, for the user, with its punctuation.
    remark: on the classes, for the user, with its punctuation.
    ignored: what is not used, in words.
    class_names: what people call the classes.
    facts: what else differs if images do.

  Raises:
    UserError: a class has too few images to hold one out.
  """
  classes = tuple(train.keys)
  counts = [len(keys) for keys in train.keys.values()]
  if not any(validation.keys.values()):
    validation_name = f'{validation_fraction:g} of each class'
    parts = {name: _split_class(name, train.keys[name], validation_fraction) for name in classes}
    validation = dataclasses.replace(train, keys={name: part[1] for name, part in parts.items()})
    train = dataclasses.replace(train, keys={name: part[0] for name, part in parts.items()})
  digest, splits = hashlib.sha256(facts.encode()), []
  for part in (train, validation):
    splits.append(part.split(classes))
    for key in splits[-1].keys:
      digest.update(f'{key}\0{part.facts[key]}\n'.encode(errors='surrogateescape'))
    digest.update(b'\n')
  train_split, eval_split = splits
  small, large = counts.index(min(counts)), counts.index(max(counts))
  found = (
    f'{title}{len(train_split):,} training and {len(eval_split):,} validation images'
    f' ({validation_name}) of {len(classes):,} classes{remark}, the smallest {classes[small]} with'
    f' {counts[small]:,}, the largest {classes[large]} with {counts[large]:,}'
  )
  return Source(
    name,
    classes,
    train_split,
    eval_split,
    f'{kind}, {len(train_split)} + {len(eval_split)} files, sha256 {digest.hexdigest()}',
    class_names,
    f'{found}; ignored: {", ".join(ignored)}' if ignored else found,
  )


def _split_class(name: str, keys: Sequence[Any], fraction: float) -> tuple[list[Any], list[Any]]:
  """Training and validation images of a class; the seed is its name, so others do not matter."""
  if len(keys) == 1:
    raise UserError(
      f'class {name!r} has 1 image, none can be held out: add images, or a validation/ folder'
    )
  count = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
  shuffled = order.permutation(zlib.crc32(name.encode(errors='surrogateescape')), 0, len(keys))
  chosen = set(shuffled[:count].tolist())
  kept = [key for index, key in enumerate(keys) if index not in chosen]
  return kept, [keys[index] for index in sorted(chosen)]
