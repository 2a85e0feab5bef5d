"""Ablations as edits of a net's rows; `alexnet_jax/ablations.py` says what was published of each.

"#147" and the like are Krizhevsky's configurations, github.com/computerhistory/AlexNet-Source-Code
`layers/layers-147.cfg`; what he measured stands in his notes there.
"""

import dataclasses
from collections.abc import Callable, Sequence

from alexnet_jax.model import layers
from alexnet_jax.model.layers import (
  Conv,
  Dense,
  Dropout,
  Local,
  MaxPool,
  Relu,
  ResponseNorm,
  SpatialNorm,
  Table,
  Tanh,
)

_NORMS = (ResponseNorm, SpatialNorm)


def edited(table: Table, names: Sequence[str], shape: layers.Shape) -> Table:
  """The table after the edits `names`, one after the other.

  Args:
    table: rows of a net.
    names: keys of `EDITS`.
    shape: (height, width, channels) of the net's input.

  Raises:
    ValueError: there is no such edit, it changes nothing here, or the net cannot be built with it.
  """
  for name in names:
    if name not in EDITS:
      raise ValueError(f'no edit {name!r}: the known ones are {", ".join(EDITS)}')
    before, table = table, EDITS[name](table, shape)
    if table == before:
      raise ValueError(f'{name} changes nothing in this net')
    layers.count_macs(table, shape)  # every layer fits its input
  return table


def _change(table: Table, kinds, **changes) -> Table:
  """The table with fields of all rows of some kinds changed."""
  return tuple(
    dataclasses.replace(row, **changes) if isinstance(row, kinds) else row for row in table
  )


def _is_conv(row: layers.Row) -> bool:
  return isinstance(row, Conv) and not isinstance(row, Local)


def no_lrn(table: Table, shape: layers.Shape) -> Table:
  """No response norm of either kind: #148 drops rnorm1, rnorm2 and the spatial cnorm2."""
  del shape
  return tuple(row for row in table if not isinstance(row, _NORMS))


def no_lrn2(table: Table, shape: layers.Shape) -> Table:
  """The first norm alone: #167 drops rnorm2 and cnorm2."""
  del shape
  first = next((row for row in table if isinstance(row, _NORMS)), None)
  return tuple(row for row in table if row is first or not isinstance(row, _NORMS))


def no_spatial_norm(table: Table, shape: layers.Shape) -> Table:
  """No norm within a map, which the paper's text does not mention."""
  del shape
  return tuple(row for row in table if not isinstance(row, SpatialNorm))


def lrn_after_pool(table: Table, shape: layers.Shape) -> Table:
  """conv1 - pool - ReLU - norm, as #120; the second layer normalizes before its pool there too."""
  del shape
  first = next((place for place, row in enumerate(table) if isinstance(row, _NORMS)), None)
  if first is None or not isinstance(table[first + 1], MaxPool):
    return table
  after = first + 2 + isinstance(table[first + 2], Relu)
  return (*table[:first], *table[first + 1 : after], table[first], *table[after:])


def lrn2_before_relu(table: Table, shape: layers.Shape) -> Table:
  """conv2 - norms - pool2 - ReLU, as the first layer of #145 and as #166."""
  del shape
  places = {row.name: place for place, row in enumerate(table)}
  relu, norm, pool = (places.get(name, -1) for name in ('relu2', 'norm2', 'pool2'))
  if not 0 <= relu < norm < pool:
    return table
  return (*table[:relu], *table[relu + 1 : pool + 1], table[relu], *table[pool + 1 :])


def non_overlapping_pool(table: Table, shape: layers.Shape) -> Table:
  """Pools with windows as wide as their stride, on maps that keep their size (section 3.4).

  Where a pool would come out larger than before, the convolution under it loses a pixel of padding:
  in #145 conv2 and conv5 do, which is #147.
  """
  wanted = {row.name: output for row, _, output in layers.walk(table, shape)}
  rows: list[layers.Row] = []
  for row in table:
    if isinstance(row, MaxPool) and row.stride < row.window:
      row = dataclasses.replace(row, window=row.stride)
      conv = max((i for i, above in enumerate(rows) if _is_conv(above)), default=None)
      *_, (_, _, output) = layers.walk((*rows, row), shape)
      if output != wanted[row.name] and conv is not None and rows[conv].padding:
        rows[conv] = dataclasses.replace(rows[conv], padding=rows[conv].padding - 1)
    rows.append(row)
  return tuple(rows)


def tanh(table: Table, shape: layers.Shape) -> Table:
  """Saturating units in place of ReLUs (section 3.1)."""
  del shape
  return tuple(
    Tanh(row.name.replace('relu', 'tanh')) if isinstance(row, Relu) else row for row in table
  )


def one_tower(table: Table, shape: layers.Shape) -> Table:
  """One GPU: half the kernels of conv1 to conv4, conv5 and the dense layers whole (#145-half)."""
  if ungrouped(table, shape) == table:
    return table
  return tuple(
    dataclasses.replace(row, features=row.features // 2)
    if _is_conv(row) and row.name in ('conv1', 'conv2', 'conv3', 'conv4')
    else row
    for row in ungrouped(table, shape)
  )


def ungrouped(table: Table, shape: layers.Shape) -> Table:
  """Every convolution sees all maps, and every norm normalizes over all of them."""
  del shape
  return tuple(
    dataclasses.replace(row, groups=1) if isinstance(row, (Conv, ResponseNorm)) else row
    for row in table
  )


def no_cross_tower(table: Table, shape: layers.Shape) -> Table:
  """Towers that meet in the classifier only (#150, as its notes describe it).

  conv2 has 160 maps a tower, fc6 4,096 units a tower and fc7 2,048, all fed by their own tower.
  A dense layer of two towers is a grouped convolution as large as its map.
  """
  if ungrouped(table, shape) == table:
    return table
  rows: list[layers.Row] = []
  last = table[-1]
  side = None
  for row in table:
    if _is_conv(row) and any(map(_is_conv, rows)):
      wider = row.features * 5 // 4 if row.name == 'conv2' else row.features
      row = dataclasses.replace(row, groups=2, features=wider)
    elif isinstance(row, Dense) and row is not last:
      *_, (_, _, inputs) = layers.walk(tuple(rows), shape)
      features = row.features * 2 if side is None else row.features
      side = inputs[0]
      row = Conv(row.name, features, side, groups=2, init=row.init, bias=row.bias)
    rows.append(row)
  return tuple(rows)


def no_dropout(table: Table, shape: layers.Shape) -> Table:
  """All units, always."""
  del shape
  return tuple(row for row in table if not isinstance(row, Dropout))


def inverted_dropout(table: Table, shape: layers.Shape) -> Table:
  """Dropout as Caffe, PyTorch and Flax have it: training divides by the kept share."""
  del shape
  return _change(table, Dropout, inverted=True)


def k1(table: Table, shape: layers.Shape) -> Table:
  """LRN with k = 1, as Caffe and the configurations before #135."""
  del shape
  return _change(table, ResponseNorm, k=1.0)


def init_01(table: Table, shape: layers.Shape) -> Table:
  """N(0, 0.01^2) for every kernel, as the paper's section 5 says."""
  del shape
  return _change(table, (Conv, Dense), init=0.01)


def _without(number: int) -> Callable[[Table, layers.Shape], Table]:
  """Removes convolution `number` with its unit and its batch norm; a pool on it stays."""

  def edit(table: Table, shape: layers.Shape) -> Table:
    del shape
    names = {f'{kind}{number}' for kind in ('conv', 'bn', 'relu', 'tanh')}
    if not any(_is_conv(row) and row.name == f'conv{number}' for row in table):
      return table
    return tuple(row for row in table if row.name not in names)

  return edit


EDITS: dict[str, Callable[[Table, layers.Shape], Table]] = {
  edit.__name__: edit
  for edit in (
    no_lrn,
    no_lrn2,
    no_spatial_norm,
    lrn_after_pool,
    lrn2_before_relu,
    k1,
    non_overlapping_pool,
    tanh,
    one_tower,
    ungrouped,
    no_cross_tower,
    no_dropout,
    inverted_dropout,
    init_01,
  )
} | {f'without_conv{number}': _without(number) for number in (3, 4, 5)}
