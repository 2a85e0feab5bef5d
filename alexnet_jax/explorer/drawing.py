"""Where a net's table stands in its picture: a box a row, from top to bottom."""

import dataclasses
import math

from alexnet_jax.model import layers

WIDTH, MIDDLE = 300, 150  # of the picture, in its own units
_WIDEST = 90  # the input's box
_GAP, _STEP = 6, 28  # between towers, and from row to row
_TOP = 4


@dataclasses.dataclass(frozen=True)
class Box:
  """A row of the picture.

  Attributes:
    name, kind, note: of the layer: its class, and its numbers in words.
    shape: of its output, as text.
    parameters: as text, '' if there are none.
    y, height: top and height of its boxes; like all lengths, in units of the picture.
    spans: (left, width) of the boxes, one a tower.
    lines: (x1, y1, x2, y2) from the row above.
    meets: whether every tower reads all towers of the row above.
  """

  name: str
  kind: str
  note: str
  shape: str
  parameters: str
  y: float
  height: float
  spans: tuple[tuple[float, float], ...]
  lines: tuple[tuple[float, float, float, float], ...]
  meets: bool

  @property
  def middle(self) -> float:
    return self.y + self.height / 2


def draw(table: layers.Table, shape: layers.Shape) -> list[Box]:
  """The input and the rows of a table, for one image of `shape`.

  Boxes are as wide as the square root of the maps' side, and as high as the logarithm of their
  number. A tower is a part of the channels that the next grouped convolution reads by itself.
  """
  boxes = [_box('input', 'Input', '', shape, 0, shape[0], _TOP, 1)]
  towers = 1
  for index, (row, inputs, outputs) in enumerate(layers.walk(table, shape)):
    weighted = isinstance(row, (layers.Conv, layers.Dense))
    before, above = towers, boxes[-1]
    if weighted:
      towers = max(getattr(row, 'groups', 1), _groups_of_next(table[index + 1 :]))
    y = _TOP + _STEP * len(boxes)
    box = _box(
      row.name,
      type(row).__name__,
      _note(row),
      outputs,
      row.parameter_count(inputs),
      shape[0],
      y,
      towers,
    )
    mixes = weighted and getattr(row, 'groups', 1) == 1
    lines = tuple(
      (left + width / 2, above.y + above.height, x + w / 2, box.y)
      for t, (left, width) in enumerate(above.spans)
      for u, (x, w) in enumerate(box.spans)
      if mixes or t == u or len(above.spans) != len(box.spans)
    )
    boxes.append(dataclasses.replace(box, lines=lines, meets=mixes and before > 1))
  return boxes


def height_of(boxes: list[Box]) -> float:
  return boxes[-1].y + _STEP


def _groups_of_next(rows: layers.Table) -> int:
  following = [row for row in rows if isinstance(row, (layers.Conv, layers.Dense))]
  return getattr(following[0], 'groups', 1) if following else 1


def _box(name, kind, note, shape, parameters, largest, slot, towers) -> Box:
  side, channels = (shape[0], shape[-1]) if len(shape) == 3 else (1, shape[0])
  width = max(_WIDEST * math.sqrt(side / largest), 12)
  height = min(6 + 1.2 * math.log2(channels), _STEP - 6)
  part = (width - _GAP * (towers - 1)) / towers
  left = MIDDLE - width / 2
  return Box(
    name=name,
    kind=kind,
    note=note,
    shape='×'.join(map(str, shape)),
    parameters=f'{parameters:,}' if parameters else '',
    y=slot + (_STEP - height) / 2,
    height=height,
    spans=tuple((left + t * (part + _GAP), part) for t in range(towers)),
    lines=(),
    meets=False,
  )


def _note(row: layers.Row) -> str:
  """What a row does, in a few words."""
  match row:
    case layers.Local():
      return f'{row.kernel}×{row.kernel}, not shared'
    case layers.Conv():
      return f'{row.kernel}×{row.kernel}' + f', stride {row.stride}' * (row.stride > 1)
    case layers.AvgPool():
      return f'mean of {row.window}×{row.window}'
    case layers.MaxPool():
      return f'largest of {row.window}×{row.window}'
    case layers.ResponseNorm():
      return f'LRN over {row.size} channels'
    case layers.SpatialNorm():
      return f'LRN over {row.size}×{row.size} places'
    case layers.BatchNorm():
      return 'batch norm'
    case layers.Dropout():
      return 'dropout: off' if row.inverted else f'dropout: at test time × {row.keep:g}'
    case layers.Relu():
      return 'max(x, 0)'
    case layers.Tanh():
      return 'tanh(x)'
  return 'fully connected'
