"""The paper's claims as changes of a config: `--ablation=NAME`, or `NAME,NAME`, on any command.

An ablation edits the rows of the net (`model/ablations.py`; kept in config.model.ablations) or sets
fields of the recipe.  One that would change nothing is refused, so that no run is mistaken for
another.

"#147" and the like are Krizhevsky's configurations and his notes in them,
github.com/computerhistory/AlexNet-Source-Code layers/layer-params-147.cfg; "§" is a section of the
paper.  Published figures are top-1 / top-5 errors with ten views on the ILSVRC-2012 validation set
where nothing else is said; #145 has 40.66 / 18.21, #170 (a later schedule) 40.53 / 18.05.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.terminal import did_you_mean

BASELINE = 'baseline'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """A change and what was published about it.

  Attributes:
    what: the change in words.
    source: where it was published, and what was said beside the numbers; '' if nowhere.
    difference: published error with the change minus that without, in points, (top-1, top-5);
      None where no number was published.
    fields: config fields to set; empty for an edit of the net.
  """

  what: str
  source: str = ''
  difference: tuple[float | None, float | None] = (None, None)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ABLATIONS: dict[str, Ablation] = {
  'no_lrn': Ablation(
    'no response normalization, neither across maps nor (all that CIFAR 18pct has) within a map',
    '§3.3: 1.4 / 1.2; #148: 42.03 / 19.36. On CIFAR-10 §3.3 gives 13 % without and 11 % with it',
    (1.37, 1.15),
  ),
  'no_lrn2': Ablation(
    'only the first response normalization',
    '#167: 40.49 / 18.12 against 40.53 / 18.05 of #170: no loss',
    (-0.04, 0.07),
  ),
  'no_spatial_norm': Ablation('no normalization within a map, as the text of the paper'),
  'lrn_after_pool': Ablation(
    'the first layer pools before it normalizes',
    '#120 against #131: 41.04 / 18.71 against 40.93 / 18.57',
    (0.11, 0.14),
  ),
  'lrn2_before_relu': Ablation(
    'second normalization before the ReLU, as in the first layer of #145',
    '#166: 41.10 / 18.67 against 40.53 / 18.05 of #170',
    (0.57, 0.62),
  ),
  'k1': Ablation(
    'LRN with k = 1 in place of 2, as Caffe',
    '#131 against #135: 40.93 / 18.57 against 41.07 / 18.42',
    (-0.14, 0.15),
  ),
  'non_overlapping_pool': Ablation(
    'pools with windows as wide as their stride, on maps of the same size',
    '§3.4: 0.4 / 0.3; #147: 41.06 / 18.51',
    (0.39, 0.30),
  ),
  'tanh': Ablation(
    'tanh in place of ReLU',
    '§3.1, Fig. 1: a four-layer net on CIFAR-10 reaches 25 % training error six times slower',
  ),
  'one_tower': Ablation(
    'one GPU: half the kernels of conv1 to conv4, no groups',
    '§3.2: 1.7 / 1.2; #145-half on the ILSVRC-2010 test set: 39.17 / 18.23 against 37.47 / 17.00',
    (1.70, 1.23),
  ),
  'ungrouped': Ablation('every convolution sees all maps'),
  'no_cross_tower': Ablation(
    'two towers that meet in the classifier only',
    '#150: 41.83 / 19.33',
    (1.17, 1.12),
  ),
  'no_dropout': Ablation(
    'no dropout', '§4.2: "substantial overfitting"; dropout doubles the iterations to converge'
  ),
  'inverted_dropout': Ablation(
    'dropout that divides by the kept share in training, as Caffe and PyTorch'
  ),
  'init_01': Ablation(
    'N(0, 0.01²) for all kernels', '§5 says so; the code has 0.03 in conv3 to conv5'
  ),
  **{
    f'without_conv{number}': Ablation(
      f'without the {name} convolution',
      '§7: removing any middle layer loses "about 2%" top-1',
      (2.0, None),
    )
    for number, name in ((3, 'third'), (4, 'fourth'), (5, 'fifth'))
  },
  'no_color_noise': Ablation(
    'no color noise',
    '§4.1: color noise gains "over 1%" top-1',
    (1.0, None),
    {'input.color_noise': 0.0, 'input.color_noise_epochs': 0.0},
  ),
  'no_random_flip': Ablation('no mirror images in training', fields={'input.random_flip': False}),
  'no_crop': Ablation('central crops in training', fields={'input.random_crop': False}),
  'no_augmentation': Ablation(
    'training without random crops, mirrors and color noise',
    '§4.1: without crops and mirrors "substantial overfitting"',
    fields={
      'input.random_crop': False,
      'input.random_flip': False,
      'input.color_noise': 0.0,
      'input.color_noise_epochs': 0.0,
    },
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


def apply(config: ml_collections.ConfigDict, names: Sequence[str]) -> ml_collections.ConfigDict:
  """A copy of a validated config with ablations, in the order given.

  Raises:
    UserError: one that is not known, or changes nothing here; the message says which would fit.
  """
  for name in names:
    try:
      config = _applied(config, name)
    except ValueError as error:
      fitting = ', '.join(fit(config)) or 'none'
      raise UserError(f'--ablation={name}: {error}; those that fit here: {fitting}') from None
  return config


def fit(config: ml_collections.ConfigDict) -> list[str]:
  """The ablations that change a config."""

  def fits(name: str) -> bool:
    try:
      _applied(config, name)
      return True
    except ValueError:
      return False

  return list(filter(fits, ABLATIONS))


def changes(config: ml_collections.ConfigDict, name: str) -> dict[str, tuple[Any, Any]] | None:
  """What an ablation does to a config, {field: (old, new)}; None if it does not fit."""
  try:
    changed = _applied(config, name)
  except ValueError:
    return None
  return configs.diff(configs.to_json(config), configs.to_json(changed))


def _applied(config, name: str):
  """Raises ValueError with the reason if the ablation does not fit."""
  if name not in ABLATIONS:
    hint = did_you_mean(name, ABLATIONS)
    raise ValueError('there is no such ablation' + (hint and f', {hint}'))
  changed = config.copy_and_resolve_references()
  if fields := ABLATIONS[name].fields:
    changed.update_from_flattened_dict(fields)
    if reason := _idle(config, changed, name):
      raise ValueError(reason)
  else:
    changed.model.ablations = (*config.model.ablations, name)
    nets.table_of(changed, config.data.num_classes or 2)
  try:
    configs.validate(changed)
  except UserError as error:
    raise ValueError(str(error)) from None
  return changed


def _idle(config, changed, name: str) -> str:
  """Why a change of fields would change nothing; '' if it does something."""
  if configs.to_json(config) == configs.to_json(changed):
    fields = ABLATIONS[name].fields.items()
    return 'the config already has ' + ', '.join(f'{path}={value}' for path, value in fields)
  if name == 'no_crop' and config.input.crop == (config.input.resize_to or config.data.image_size):
    return 'the crop is the whole image'
  if name == 'scalar_mean' and config.input.normalization != 'mean_image':
    return f'no mean image is subtracted: input.normalization is {config.input.normalization}'
  return ''
