"""What passes from data sets to the store: labeled images by index, and parts of a split."""

import dataclasses
import os
from typing import Protocol

import numpy as np

from alexnet_jax.errors import UserError


class AbsentData(UserError):
  """The data set is not at the config's path; its prepared store may exist nevertheless."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One labeled image.

  Attributes:
    data: an encoded file (bytes), or pixels: uint8 (H, W, 3) RGB or (H, W) gray.
    label: class number, from 0.
    name: what to call it in a message to the user.
  """

  data: bytes | np.ndarray
  label: int
  name: str


def gone(path: str | os.PathLike, reason: object) -> UserError:
  """The error of a file that could be read before."""
  return UserError(
    f'{path} can no longer be read ({reason}): is its disk still there? run again to go on from'
    ' here'
  )


def damaged(path: str | os.PathLike, kind: str, error: Exception) -> UserError:
  """The error of a file that is no good file of its kind."""
  return UserError(
    f'{path} is cut short, damaged, or no {kind} file ({" ".join(str(error).split())[:200]}): fetch'
    ' it again'
  )


class SourceSplit(Protocol):
  """Random access to the examples of one split. Picklable: worker processes read through it."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set.

  Attributes:
    name: short name, fit for a folder name.
    classes: class names; a label is an index into it.
    train: the examples to learn from.
    eval: the validation examples.
    fingerprint: text that differs when the examples differ; a store remembers it.
    class_names: what people call the classes where `classes` are codes and a file says so.
    found: one line for the user: what is there, and what is ignored and why.
  """

  name: str
  classes: tuple[str, ...]
  train: SourceSplit
  eval: SourceSplit
  fingerprint: str
  class_names: tuple[str, ...] = ()
  found: str = ''


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows `start` to `stop` of a split, which one process writes at a time."""

  split: str
  number: int
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start
