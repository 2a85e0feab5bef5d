"""Predictions for single images, as text and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.results.scores import TOP_K
from alexnet_jax.terminal import aligned, shortened

_MANY = 20  # images; more get a line each instead of a block
_BAR, _NAME = 24, 40  # characters at most; ImageNet's classes have long names


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePrediction:
  """The prediction for one image.

  Attributes:
    name: the file, or '#3' for the third of an array or list of arrays.
    classes: names of the k most probable classes, best first; () if the image cannot be read.
    labels: their indices.
    probabilities: their probabilities, float32 (k,).
    true_class: the class after which a folder of the file is named; '' if none is.
    true_label: the index of that class, or None.
    features: float32, the output of the layer given as `features`, or None.
    error: why the image cannot be read; '' if it can.
  """

  name: str
  classes: tuple[str, ...] = ()
  labels: tuple[int, ...] = ()
  probabilities: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
  true_class: str = ''
  true_label: int | None = None
  features: np.ndarray | None = None
  error: str = ''


def predictions_text(found: Sequence[ImagePrediction], classes: int) -> str:
  """A block for each image, or a line if there are many, and a summary.

  Args:
    found: predictions; at least one image could be read.
    classes: how many the net has.
  """
  readable = [each for each in found if not each.error]
  lines = _lines(readable) if len(readable) > _MANY else _blocks(readable)
  return '\n'.join([*lines, '', _summary(found, classes)])


def _blocks(found: Sequence[ImagePrediction]) -> list[str]:
  width = min(max(len(name) for each in found for name in each.classes), _NAME)
  lines = []
  for each in found:
    lines += ['', each.name]
    for name, label, share in zip(each.classes, each.labels, each.probabilities, strict=True):
      bar = '█' * round(_BAR * float(share))
      note = '  true class' if label == each.true_label else ''
      line = f'  {shortened(name, width):<{width}}  {share:8.2%}  {bar:<{_BAR}}{note}'
      lines.append(line.rstrip())
    if each.true_class and each.true_label not in each.labels:
      lines.append(f'  true class: {each.true_class}')
  return lines[1:]


def _lines(found: Sequence[ImagePrediction]) -> list[str]:
  rows = [
    (
      each.name,
      shortened(each.classes[0], _NAME),
      f'{each.probabilities[0]:.2%}',
      f'true class: {each.true_class}' * (each.true_label not in (None, each.labels[0])),
    )
    for each in found
  ]
  return aligned(rows, left=(0, 1, 3))


def known_error_rates(found: Sequence[ImagePrediction], classes: int) -> dict[str, float]:
  """Error rates over the images whose true class is known.

  Args:
    found: predictions, each with as many named classes.
    classes: how many the net has.

  Returns:
    `known`, the number of those images, top1_error, and top5_error if at least five of more than
    five classes are named.
  """
  known = [each for each in found if each.true_label is not None and not each.error]
  result: dict[str, float] = {'known': len(known)}
  for name, k in TOP_K.items():
    if known and (k == 1 or k < classes) and k <= len(known[0].labels):
      result[name] = float(np.mean([each.true_label not in each.labels[:k] for each in known]))
  return result


def _summary(found: Sequence[ImagePrediction], classes: int) -> str:
  broken = sum(bool(each.error) for each in found)
  line = f'{len(found):,} image{"s" * (len(found) != 1)}'
  if broken:
    line += f', of which {broken:,} cannot be read'
  shares = known_error_rates(found, classes)
  if count := shares.pop('known'):
    told = ', '.join(f'top-{TOP_K[name]} error {share:.2%}' for name, share in shares.items())
    line += f'; {told} of the {count:,} in folders named after their class'
  return line


def predictions_json(found: Sequence[ImagePrediction]) -> list[dict[str, Any]]:
  """An object for each image: file, and predictions with true_class if known, or error."""
  return [
    {'file': each.name, 'error': each.error}
    if each.error
    else {
      'file': each.name,
      **({'true_class': each.true_class} if each.true_class else {}),
      'predictions': [
        {'class': name, 'probability': float(share)}
        for name, share in zip(each.classes, each.probabilities, strict=True)
      ],
    }
    for each in found
  ]
