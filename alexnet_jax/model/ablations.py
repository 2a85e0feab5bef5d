"""The paper's claims as changes of a config: `--ablation=NAME`, or `NAME,NAME`, on any command.

An ablation edits the rows of the net or sets fields of the recipe; beside it stands what was
published of it.  `config.apply_ablations` applies them to a config.

"#147" and the like are Krizhevsky's configurations and his notes in them,
github.com/computerhistory/AlexNet-Source-Code layers/layers-147.cfg and layer-params-147.cfg; "§"
is a section of the paper.  Published figures are top-1 / top-5 errors in percent with ten views on
the ILSVRC-2012 validation set where nothing else is said; #145 has 40.66 / 18.21, #170 (a later
schedule) 40.53 / 18.05.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

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

BASELINE = 'baseline'  # the name of no ablation
# (rows of a net, (height, width, channels) of its input) -> other rows
Edit = Callable[[Table, layers.Shape], Table]
_NORMS = (ResponseNorm, SpatialNorm)


@dataclasses.dataclass(frozen=True)
class Ablation:
  """A change of the net or of the recipe, and what was published about it.

  Attributes:
    what: the change in words.
    source: where it was published, and what was said beside the numbers; '' if nowhere.
    difference: published error with the change minus that without, in points, (top-1, top-5);
      None where no number was published.
    edit: the change of the net's rows; None for a change of the recipe.
    fields: {config field: its new value}, for a change of the recipe.
  """

  what: str
  source: str = ''
  difference: tuple[float | None, float | None] = (None, None)
  edit: Edit | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def edited(table: Table, names: Sequence[str], shape: layers.Shape) -> Table:
  """The rows of a net after some ablations, one after the other.

  Args:
    table: rows of a net.
    names: ablations that edit rows.
    shape: (height, width, channels) of the net's input.

  Raises:
    ValueError: there is no such edit, it changes nothing here, or the net cannot be built with it.
  """
  for name in names:
    if name not in EDITS:
      raise ValueError(f'no ablation {name!r} of a net: known are {", ".join(EDITS)}')
    before, table = table, EDITS[name](table, shape)
    if table == before:
      raise ValueError(f'{name} changes nothing in this net')
    layers.count_macs(table, shape)  # every layer fits its input
  return table


# Edits of rows.


def _remove(kinds) -> Edit:
  return lambda table, shape: tuple(row for row in table if not isinstance(row, kinds))


def _change(kinds, **changes) -> Edit:
  """Sets attributes of all rows of some kinds."""
  return lambda table, shape: tuple(
    dataclasses.replace(row, **changes) if isinstance(row, kinds) else row for row in table
  )


def _without_conv(number: int) -> Edit:
  """Removes a convolution with its nonlinearity and batch norm; a pool after it stays."""
  names = {f'{kind}{number}' for kind in ('conv', 'bn', 'relu', 'tanh')}

  def edit(table: Table, shape: layers.Shape) -> Table:
    del shape
    if not any(_is_conv(row) and row.name == f'conv{number}' for row in table):
      return table
    return tuple(row for row in table if row.name not in names)

  return edit


def _is_conv(row: layers.Row) -> TypeGuard[Conv]:
  return isinstance(row, Conv) and not isinstance(row, Local)


_ungrouped = _change((Conv, ResponseNorm), groups=1)


def _first_norm_only(table: Table, shape: layers.Shape) -> Table:
  """#167 removes rnorm2 and cnorm2."""
  del shape
  first = next((row for row in table if isinstance(row, _NORMS)), None)
  return tuple(row for row in table if row is first or not isinstance(row, _NORMS))


def _lrn_after_pool(table: Table, shape: layers.Shape) -> Table:
  """conv1 - pool - ReLU - norm, as #120; the second layer normalizes before its pool there too."""
  del shape
  first = next((place for place, row in enumerate(table) if isinstance(row, _NORMS)), None)
  if first is None or not isinstance(table[first + 1], MaxPool):
    return table
  after = first + 2 + isinstance(table[first + 2], Relu)
  return (*table[:first], *table[first + 1 : after], table[first], *table[after:])


def _lrn2_before_relu(table: Table, shape: layers.Shape) -> Table:
  """conv2 - norms - pool2 - ReLU, as the first layer of #145 and as #166."""
  del shape
  places = {row.name: place for place, row in enumerate(table)}
  relu, norm, pool = (places.get(name, -1) for name in ('relu2', 'norm2', 'pool2'))
  if not 0 <= relu < norm < pool:
    return table
  return (*table[:relu], *table[relu + 1 : pool + 1], table[relu], *table[pool + 1 :])


def _non_overlapping_pool(table: Table, shape: layers.Shape) -> Table:
  """Windows as wide as their stride, on maps that keep their size.

  Where a pool would come out larger than before, the convolution before it loses a pixel of
  padding: in #145 conv2 and conv5 do, which is #147.
  """
  wanted = {row.name: output for row, _, output in layers.walk(table, shape)}
  rows: list[layers.Row] = []
  for row in table:
    if isinstance(row, MaxPool) and row.stride < row.window:
      row = dataclasses.replace(row, window=row.stride)
      *_, (_, _, output) = layers.walk((*rows, row), shape)
      convs = [(i, above) for i, above in enumerate(rows) if _is_conv(above)]
      if output != wanted[row.name] and convs and convs[-1][1].padding:
        place, conv = convs[-1]
        rows[place] = dataclasses.replace(conv, padding=conv.padding - 1)
    rows.append(row)
  return tuple(rows)


def _tanh(table: Table, shape: layers.Shape) -> Table:
  del shape
  return tuple(
    Tanh(row.name.replace('relu', 'tanh')) if isinstance(row, Relu) else row for row in table
  )


def _one_tower(table: Table, shape: layers.Shape) -> Table:
  """#145-half: half the kernels of conv1 to conv4, conv5 and the dense layers whole."""
  whole = _ungrouped(table, shape)
  if whole == table:
    return table
  return tuple(
    dataclasses.replace(row, features=row.features // 2)
    if _is_conv(row) and row.name in ('conv1', 'conv2', 'conv3', 'conv4')
    else row
    for row in whole
  )


def _no_cross_tower(table: Table, shape: layers.Shape) -> Table:
  """#150, as its notes describe it: all layers but the last are fed by their own tower.

  conv2 has 160 maps a tower, fc6 4,096 units a tower and fc7 2,048.  A dense layer of two towers
  is a grouped convolution as large as its map.
  """
  if _ungrouped(table, shape) == table:
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


_NO_COLOR_NOISE = {'input.color_noise': 0.0, 'input.color_noise_epochs': 0.0}

ABLATIONS: dict[str, Ablation] = {
  'no_lrn': Ablation(
    'no response normalization, neither across maps nor (all that CIFAR 18pct has) within a map',
    '§3.3: 1.4 / 1.2; #148: 42.03 / 19.36. On CIFAR-10 §3.3 gives 13 % without and 11 % with it',
    (1.37, 1.15),
    edit=_remove(_NORMS),
  ),
  'no_lrn2': Ablation(
    'only the first response normalization',
    '#167: 40.49 / 18.12 against 40.53 / 18.05 of #170: no loss',
    (-0.04, 0.07),
    edit=_first_norm_only,
  ),
  'no_spatial_norm': Ablation(
    'no normalization within a map, as the text of the paper', edit=_remove(SpatialNorm)
  ),
  'lrn_after_pool': Ablation(
    'the first layer pools before it normalizes',
    '#120 against #131: 41.04 / 18.71 against 40.93 / 18.57',
    (0.11, 0.14),
    edit=_lrn_after_pool,
  ),
  'lrn2_before_relu': Ablation(
    'second normalization before the ReLU, as in the first layer of #145',
    '#166: 41.10 / 18.67 against 40.53 / 18.05 of #170',
    (0.57, 0.62),
    edit=_lrn2_before_relu,
  ),
  'k1': Ablation(
    'LRN with k = 1 in place of 2, as Caffe',
    '#131 against #135: 40.93 / 18.57 against 41.07 / 18.42',
    (-0.14, 0.15),
    edit=_change(ResponseNorm, k=1.0),
  ),
  'non_overlapping_pool': Ablation(
    'pools with windows as wide as their stride, on maps of the same size',
    '§3.4: 0.4 / 0.3; #147: 41.06 / 18.51',
    (0.39, 0.30),
    edit=_non_overlapping_pool,
  ),
  'tanh': Ablation(
    'tanh in place of ReLU',
    '§3.1, Fig. 1: a four-layer net on CIFAR-10 reaches 25 % training error six times slower',
    edit=_tanh,
  ),
  'one_tower': Ablation(
    'one GPU: half the kernels of conv1 to conv4, no groups',
    '§3.2: 1.7 / 1.2; #145-half on the ILSVRC-2010 test set: 39.17 / 18.23 against 37.47 / 17.00',
    (1.70, 1.23),
    edit=_one_tower,
  ),
  'ungrouped': Ablation('every convolution sees all maps', edit=_ungrouped),
  'no_cross_tower': Ablation(
    'two towers that meet in the classifier only',
    '#150: 41.83 / 19.33',
    (1.17, 1.12),
    edit=_no_cross_tower,
  ),
  'no_dropout': Ablation(
    'no dropout',
    '§4.2: "substantial overfitting"; dropout doubles the iterations to converge',
    edit=_remove(Dropout),
  ),
  'inverted_dropout': Ablation(
    'dropout that divides by the kept share in training, as Caffe and PyTorch',
    edit=_change(Dropout, inverted=True),
  ),
  'init_01': Ablation(
    'N(0, 0.01²) for all kernels',
    '§5 says so; the code has 0.03 in conv3 to conv5',
    edit=_change((Conv, Dense), init=0.01),
  ),
  **{
    f'without_conv{number}': Ablation(
      f'without the {name} convolution',
      '§7: removing any middle layer loses "about 2%" top-1',
      (2.0, None),
      _without_conv(number),
    )
    for number, name in ((3, 'third'), (4, 'fourth'), (5, 'fifth'))
  },
  'no_color_noise': Ablation(
    'no color noise',
    '§4.1: color noise gains "over 1%" top-1',
    (1.0, None),
    fields=_NO_COLOR_NOISE,
  ),
  'no_random_flip': Ablation('no mirror images in training', fields={'input.random_flip': False}),
  'no_crop': Ablation('central crops in training', fields={'input.random_crop': False}),
  'no_augmentation': Ablation(
    'training without random crops, mirrors and color noise',
    '§4.1: without crops and mirrors "substantial overfitting"',
    fields={'input.random_crop': False, 'input.random_flip': False, **_NO_COLOR_NOISE},
  ),
  'no_weight_decay': Ablation(
    'no weight decay',
    '§5: weight decay "was important for the model to learn"',
    fields={'optimizer.weight_decay': 0.0, 'optimizer.layer_weight_decay': {}},
  ),
  'scalar_mean': Ablation(
    'one number subtracted, the mean of all pixels and channels, in place of the mean image',
    '#136: "no better"',
    fields={'input.normalization': 'mean_scalar'},
  ),
}
EDITS = {name: ablation.edit for name, ablation in ABLATIONS.items() if ablation.edit}
