"""Numbers the classes of a packed data set, whose labels are numbers or words.

Where the names of all training files have a WNID, and each label has one of its own, the classes
are those WNIDs, in the order of their names as in all lists of ImageNet, whatever the order of the
labels. Else the order is that of the names that the files give their classes, else that of the
labels themselves.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from alexnet_jax.errors import UserError

Label = int | str | None
LABEL_COLUMNS = ('label', 'labels', 'fine_label', 'class', 'target', 'cls', 'category')
_WNID = re.compile(r'(?<![A-Za-z0-9])n\d{8}(?!\d)')


@dataclasses.dataclass(frozen=True)
class Classes:
  """The classes of a data set.

  Attributes:
    names: their names, no two alike; a class number is an index into it.
    words: what people call them, if `names` are WNIDs and the files say so.
    by_label: label in the files -> class number.
    remark: for the user, what was found odd; '', or it begins with a comma.
  """

  names: tuple[str, ...]
  words: tuple[str, ...]
  by_label: Mapping[Any, int]
  remark: str


def number_classes(
  root: pathlib.Path,
  train: tuple[Sequence[Label], Sequence[str]],
  validation: tuple[Sequence[Label], Sequence[str]],
  names: Sequence[str],
) -> Classes:
  """Numbers the classes of a data set.

  Args:
    root: the data set, for messages.
    train: label and file name of each training image.
    validation: the same of the validation images.
    names: names of the classes by number, if the files have some.

  Raises:
    UserError: a label is no class, only validation images have it, or it contradicts a WNID.
  """
  labels, others = (set(part[0]) - {None, -1} for part in (train, validation))
  wnids, remark = _wnids(*train)
  if wnids:
    _check_wnids(root, *validation, wnids)
    ordered = sorted(wnids, key=wnids.__getitem__)
    words = tuple(_word(label, names) for label in ordered) if names else ()
    if all(isinstance(label, int) for label in ordered) and ordered != sorted(ordered):
      remark = ', numbered anew in the order of their WNIDs'
    classes = tuple(wnids[label] for label in ordered)
  else:
    words, ordered = (), in_order(labels)
    if names and all(isinstance(label, str) for label in labels) and labels <= set(names):
      ordered = list(dict.fromkeys(names))
    elif names and all(isinstance(label, int) for label in labels):
      _check_range(root, labels | others, names)
      ordered = list(range(len(names)))
    classes = tuple(_word(label, names) for label in ordered)
    if len(set(classes)) < len(classes):
      counts = collections.Counter(classes)
      classes = tuple(
        f'{name} ({number})' if counts[name] > 1 else name for number, name in enumerate(classes)
      )
      remark += f', {sum(n for n in counts.values() if n > 1)} of which share their names'
  by_label = {label: number for number, label in enumerate(ordered)}
  if strangers := in_order(others - by_label.keys()):
    raise UserError(
      f'{root} has validation images of {len(strangers)} class(es) that no training image has, the'
      f' first is {strangers[0]!r}: are all files there, and of one data set?'
    )
  return Classes(classes, words, by_label, remark)


def _wnids(labels: Sequence[Label], files: Sequence[str]) -> tuple[dict[Any, str], str]:
  """Label -> WNID, if files have one and labels go with them; a remark if labels do not."""
  pairs: dict[Any, set[str]] = {}
  for label, file in zip(labels, files, strict=True):
    if label not in (None, -1):
      found = _WNID.findall(file)
      if not found:
        return {}, ''
      pairs.setdefault(label, set()).add(found[-1])
  wnids = {label: min(found) for label, found in pairs.items()}
  if len(set().union(*pairs.values())) == len(pairs) == sum(map(len, pairs.values())):
    return wnids, ''
  return {}, ', whose labels do not go with the WNIDs in the names of their files'


def _check_wnids(
  root: pathlib.Path, labels: Sequence[Label], files: Sequence[str], wnids: Mapping[Any, str]
) -> None:
  for label, file in zip(labels, files, strict=True):
    found = _WNID.findall(file)
    if label in wnids and found and found[-1] != wnids[label]:
      raise UserError(
        f'{root}: the validation image {file} has label {label!r}, which is {wnids[label]} in the'
        ' training images: the files are not of one data set'
      )


def _check_range(root: pathlib.Path, labels: Set[Any], names: Sequence[str]) -> None:
  numbers = [label for label in labels if isinstance(label, int)]
  if wrong := sorted(label for label in numbers if not 0 <= label < len(names)):
    raise UserError(
      f'{root} has {len(names)} names of classes, and the label {wrong[0]}, allowed are 0 to'
      f' {len(names) - 1}: fetch it again, or correct the data'
    )


def _word(label: Label, names: Sequence[str]) -> str:
  return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)


def in_order(labels: Set[Any]) -> list[Any]:
  """Numbers, also those written as text, in their order; other text in that of the alphabet."""

  def key(label: Any) -> tuple:
    text = str(label)
    return (0, int(text), text) if text.isascii() and text.isdigit() else (1, 0, text)

  return sorted(labels, key=key)
