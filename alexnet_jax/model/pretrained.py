"""A trained net and everything needed to apply it to images."""

import dataclasses
from pathlib import Path
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets
from alexnet_jax.model.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """What every format is read into, and every format is written from.

  Attributes:
    source: what it is and where it came from, such as "torchvision alexnet, alexnet.pth".
    net: a key of `nets.NETS`.
    variables: {'params': {layer: {'kernel', 'bias'}}, 'batch_stats': {...}} as NumPy float32, in
      the layout of `AlexNet`; the net takes RGB.
    classes: names, in the order of the logits.
    image_size: side of the square an image is resized to before a view of it is cut.
    resize: how, 'crop' or 'warp', as in `data.images`.
    preprocessing: from that square to the net's input.
    ablations: of the net, as in config.model.ablations.
    width: of the net, as in config.model.width.
  """

  source: str
  net: str
  variables: dict[str, Any]
  classes: tuple[str, ...]
  image_size: int
  resize: str
  preprocessing: Preprocessing
  ablations: tuple[str, ...] = ()
  width: float = 1.0

  @property
  def table(self) -> layers.Table:
    """The rows of the net."""
    crop = self.preprocessing.crop
    return nets.make_table(self.net, len(self.classes), crop, self.width, self.ablations)


def check_same_classes(path: Path | str, classes: tuple[str, ...], store) -> None:
  """Raises UserError if the logits cannot mean the classes of the data."""
  if len(classes) != len(store.classes):
    raise UserError(f'{path} has {len(classes):,} classes, the data has {len(store.classes):,}')
  unnamed = classes == tuple(f'class {number}' for number in range(len(classes)))
  if unnamed or classes in (store.classes, store.class_names):
    return
  number = next(n for n, (a, b) in enumerate(zip(classes, store.classes, strict=True)) if a != b)
  raise UserError(
    f'{path} has other classes than the data: class {number} is {classes[number]!r} in the weights,'
    f' {store.classes[number]!r} in the data'
  )
