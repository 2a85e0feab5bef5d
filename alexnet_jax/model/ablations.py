"""The paper's claims as changes of a config: `--ablation=NAME`, or `NAME,NAME`, on any command.

An ablation edits the rows of the net, sets config fields, or both.  `config_files.apply_ablations`
applies them to a config.

"#147" and the like are Krizhevsky's configurations and his notes in them,
github.com/computerhistory/AlexNet-Source-Code layers/layers-147.cfg and layer-params-147.cfg; "§"
is a section of the paper.  Published figures are top-1 / top-5 errors in percent with ten views on
the ILSVRC-2012 validation set where nothing else is said; #145 has 40.66 / 18.21, #170 (a later
schedule) 40.53 / 18.05.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alexnet_jax.model import layers
from alexnet_jax.model.layers import (
  Conv,
  Dense,
  Dropout,
  MaxPool,
  Relu,
  ResponseNorm,
  Row,
  Shape,
  SpatialNorm,
  Table,
  Tanh,
  without,
)

BASELINE = 'baseline'  # the name of a run without ablations
# (rows of a net, (height, width, channels) of its input) -> other rows
Edit = Callable[[Table, Shape], Table]
_NORMS = (ResponseNorm, SpatialNorm)


@dataclasses.dataclass(frozen=True)
class Ablation:
  """A change of the net, of config fields or of both, and what was published about it.

  Attributes:
    source: where it was published, and what was said beside the numbers; '' if nowhere.
    difference: published error with the change minus that without, in points, (top-1, top-5);
      None where no number was published.
    edit: the change of the net's rows; None for a change of config fields alone.
    fields: {config field: its new value}.
  """

  source: str = ''
  difference: tuple[float | None, float | None] = (None, None)
  edit: Edit | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def published(self) -> dict[str, float]:
    """The published difference by metric, as fractions."""
    points = zip(('top1_error', 'top5_error'), self.difference, strict=True)
    return {metric: each / 100 for metric, each in points if each is not None}


def edited(table: Table, names: Sequence[str], shape: Shape) -> Table:
  """The rows of a net after these ablations; `shape`: (height, width, channels) of its input.

  Raises:
    ValueError: one of them has no edit or changes nothing here, or the net cannot be built with it.
  """
  for name in names:
    if name not in EDITS:
      raise ValueError(f'unknown ablation {name!r} of a net; choose from {", ".join(EDITS)}')
    before, table = table, EDITS[name](table, shape)
    if table == before:
      raise ValueError(f'{name} changes nothing in this net')
    layers.count_macs(table, shape)  # every layer fits its input
  return table


# Edits of rows.


def _change(kinds, **changes) -> Edit:
  """Sets attributes of all rows of some kinds."""
  return lambda table, _: tuple(
    dataclasses.replace(row, **changes) if isinstance(row, kinds) else row for row in table
  )


_ungrouped = _change((Conv, ResponseNorm), groups=1)


def _without_conv(number: int) -> Edit:
  """Removes a convolution with its nonlinearity and batch norm; a pool after it stays."""
  conv = f'conv{number}'
  names = {conv, f'bn{number}', f'relu{number}', f'tanh{number}'}

  def edit(table: Table, _: Shape) -> Table:
    there = any(row.name == conv for row in table)
    return tuple(row for row in table if not there or row.name not in names)

  return edit


def _first_norm_only(table: Table, _: Shape) -> Table:
  """#167 removes rnorm2 and cnorm2."""
  first = next((row for row in table if isinstance(row, _NORMS)), None)
  return tuple(row for row in table if row is first or not isinstance(row, _NORMS))


def _move(table: Table, place: int, behind: int) -> Table:
  return *table[:place], *table[place + 1 : behind + 1], table[place], *table[behind + 1 :]


def _lrn_after_pool(table: Table, _: Shape) -> Table:
  """conv1 - pool - ReLU - norm, as #120; the second layer normalizes before its pool there too."""
  first = next((place for place, row in enumerate(table) if isinstance(row, _NORMS)), None)
  if first is None or not isinstance(table[first + 1], MaxPool):
    return table
  return _move(table, first, first + 1 + isinstance(table[first + 2], Relu))


def _lrn2_before_relu(table: Table, _: Shape) -> Table:
  """conv2 - norms - pool2 - ReLU, as the first layer of #145 and as #166."""
  places = {row.name: place for place, row in enumerate(table)}
  relu, norm, pool = (places.get(name, -1) for name in ('relu2', 'norm2', 'pool2'))
  return _move(table, relu, pool) if 0 <= relu < norm < pool else table


def _non_overlapping_pool(table: Table, shape: Shape) -> Table:
  """Windows as wide as their stride, on maps that keep their size.

  Where a pool would come out larger than before, the convolution before it loses a pixel of
  padding: in #145 conv2 and conv5 do, which is #147.
  """
  rows: list[Row] = []
  for row, _, wanted in layers.walk(table, shape):
    if isinstance(row, MaxPool) and row.stride < row.window:
      row = dataclasses.replace(row, window=row.stride)
      *_, (_, _, output) = layers.walk((*rows, row), shape)
      place = max(place for place, above in enumerate(rows) if isinstance(above, Conv))
      conv = rows[place]
      if output != wanted and isinstance(conv, Conv) and conv.padding:
        rows[place] = dataclasses.replace(conv, padding=conv.padding - 1)
    rows.append(row)
  return tuple(rows)


def _tanh(table: Table, _: Shape) -> Table:
  return tuple(
    Tanh(row.name.replace('relu', 'tanh')) if isinstance(row, Relu) else row for row in table
  )


def _bias_1(table: Table, _: Shape) -> Table:
  """conv2, conv4, conv5 and the hidden dense layers; PyTorch's initialization draws its biases."""
  return tuple(
    dataclasses.replace(row, bias=1.0)
    if isinstance(row, (Conv, Dense))
    and row.init != 'torch'
    and (row.name in ('conv2', 'conv4', 'conv5') or isinstance(row, Dense) and row is not table[-1])
    else row
    for row in table
  )


def _one_tower(table: Table, shape: Shape) -> Table:
  """#145-half: half the kernels of conv1 to conv4, all of conv5 and the dense layers."""
  ungrouped = _ungrouped(table, shape)
  if ungrouped == table:
    return table
  return tuple(
    dataclasses.replace(row, features=row.features // 2)
    if isinstance(row, Conv) and row.name in ('conv1', 'conv2', 'conv3', 'conv4')
    else row
    for row in ungrouped
  )


def _no_cross_tower(table: Table, shape: Shape) -> Table:
  """#150, as its notes describe it: all layers but the last are fed by their own tower.

  conv2 has 160 maps a tower, fc6 4,096 units a tower and fc7 2,048.  A dense layer of two towers
  is a grouped convolution as large as its map.
  """
  if _ungrouped(table, shape) == table:
    return table
  rows: list[Row] = []
  for row, inputs, _ in layers.walk(table, shape):
    if isinstance(row, Conv) and rows:
      wider = row.features * 5 // 4 if row.name == 'conv2' else row.features
      row = dataclasses.replace(row, groups=2, features=wider)
    elif isinstance(row, Dense) and row is not table[-1]:
      side, features = (inputs[0], 2 * row.features) if len(inputs) == 3 else (1, row.features)
      row = Conv(row.name, features, side, groups=2, init=row.init, bias=row.bias)
    rows.append(row)
  return tuple(rows)


_NO_COLOR_NOISE = {'input.color_noise': 0.0, 'input.color_noise_epochs': 0.0}

ABLATIONS: dict[str, Ablation] = {
  # Neither across maps nor within a map, which is all that CIFAR 18pct has.
  'no_lrn': Ablation(
    '§3.3: 1.4 / 1.2; #148: 42.03 / 19.36. On CIFAR-10 §3.3 gives 13 % without and 11 % with it',
    (1.37, 1.15),
    lambda table, _: without(table, _NORMS),
  ),
  'no_lrn2': Ablation(
    '#167: 40.49 / 18.12 against 40.53 / 18.05 of #170: no loss', (-0.04, 0.07), _first_norm_only
  ),
  # As the text of the paper.
  'no_spatial_norm': Ablation(edit=lambda table, _: without(table, SpatialNorm)),
  'lrn_after_pool': Ablation(
    '#120 against #131: 41.04 / 18.71 against 40.93 / 18.57', (0.11, 0.14), _lrn_after_pool
  ),
  'lrn2_before_relu': Ablation(
    '#166: 41.10 / 18.67 against 40.53 / 18.05 of #170', (0.57, 0.62), _lrn2_before_relu
  ),
  # In place of 2; as Caffe.
  'k1': Ablation(
    '#131 against #135: 40.93 / 18.57 against 41.07 / 18.42',
    (-0.14, 0.15),
    _change(ResponseNorm, k=1.0),
  ),
  'non_overlapping_pool': Ablation(
    '§3.4: 0.4 / 0.3; #147: 41.06 / 18.51', (0.39, 0.30), _non_overlapping_pool
  ),
  'tanh': Ablation(
    '§3.1, Fig. 1: a four-layer net on CIFAR-10 reaches 25 % training error six times slower',
    edit=_tanh,
  ),
  'one_tower': Ablation(
    '§3.2: 1.7 / 1.2; #145-half on the ILSVRC-2010 test set: 39.17 / 18.23 against 37.47 / 17.00',
    (1.70, 1.23),
    _one_tower,
  ),
  # Every convolution sees all maps.
  'ungrouped': Ablation(edit=_ungrouped),
  'no_cross_tower': Ablation('#150: 41.83 / 19.33', (1.17, 1.12), _no_cross_tower),
  'no_dropout': Ablation(
    '§4.2: "substantial overfitting"; dropout doubles the iterations to converge',
    edit=lambda table, _: without(table, Dropout),
  ),
  # Divides by the share it keeps in training, as Caffe and PyTorch.
  'inverted_dropout': Ablation(edit=_change(Dropout, inverted=True)),
  'init_01': Ablation(
    '§5 says so; the code has 0.03 in conv3 to conv5', edit=_change((Conv, Dense), init=0.01)
  ),
  # After init_01 where the net has PyTorch's initialization.
  'bias_1': Ablation('§5: gives ReLUs positive inputs at first, as #145 does', edit=_bias_1),
  **{
    f'without_conv{number}': Ablation(
      '§7: removing any middle layer loses "about 2%" top-1', (2.0, None), _without_conv(number)
    )
    for number in (3, 4, 5)
  },
  'no_color_noise': Ablation(
    '§4.1: color noise gains "over 1%" top-1', (1.0, None), fields=_NO_COLOR_NOISE
  ),
  'no_random_flip': Ablation(fields={'input.random_flip': False}),
  'no_random_crop': Ablation(fields={'input.random_crop': False}),
  'no_augmentation': Ablation(
    '§4.1: without crops and mirrors "substantial overfitting"',
    fields={'input.random_crop': False, 'input.random_flip': False, **_NO_COLOR_NOISE},
  ),
  'no_weight_decay': Ablation(
    '§5: weight decay "was important for the model to learn"',
    fields={'optimizer.weight_decay': 0.0, 'optimizer.layer_weight_decay': {}},
  ),
  # The mean of all pixels and channels, in place of the mean image.
  'mean_scalar': Ablation('#136: "no better"', fields={'input.normalization': 'mean_scalar'}),
}
EDITS = {name: ablation.edit for name, ablation in ABLATIONS.items() if ablation.edit}
