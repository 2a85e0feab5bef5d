"""What a config may say: every field with its default, what is allowed, and what it means.

A config file calls `default()` and changes fields; the command line changes more.  ml_collections
refuses unknown fields and wrong types at once; `validate` checks values and combinations.  A config
that starts from trained weights may leave fields to them, see `left_open`.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from alexnet_jax.errors import UserError
from alexnet_jax.model import ablations, layers, nets

Check = Callable[[Any], str | None]  # None if the value is allowed, else what would be


def _one_of(*allowed) -> Check:
  return lambda value: None if value in allowed else 'one of ' + ', '.join(map(str, allowed))


def _between(low: float, high: float = math.inf) -> Check:
  top = f' and at most {high:g}' if high < math.inf else ''
  return lambda value: None if low <= value <= high else f'at least {low:g}{top}'


def _above(low: float, high: float = math.inf) -> Check:
  top = f' and at most {high:g}' if high < math.inf else ''
  return lambda value: None if low < value <= high else f'more than {low:g}{top}'


def _increasing(value) -> str | None:
  numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)
  if numbers and all(a < b for a, b in zip((0, *value), (*value, math.inf), strict=True)):
    return None
  return 'increasing positive epochs, such as (25.0, 51.0)'


def _ablations(value) -> str | None:
  if all(isinstance(edit, str) and edit in ablations.EDITS for edit in value):
    return None
  return 'a tuple of ' + ', '.join(ablations.EDITS)


def _on_disk(value: str) -> str | None:
  return 'on a disk of this machine: copy it there first' if '://' in value else None


def _anything(value) -> None:
  del value


@dataclasses.dataclass(frozen=True)
class Field:
  """A config field: default (which fixes its type), check, meaning."""

  default: Any
  check: Check
  meaning: str


_SCHEDULE = {
  'milestones': Field((), _increasing, "kind 'step': epochs at which the rate drops"),
  'factor': Field(0.1, _above(0, 1), "kinds 'step', 'plateau': what a drop multiplies it by"),
  'levels': Field(4, _between(1, 1000), "kind 'exponential': number of equal parts"),
  'target_factor': Field(250.0, _between(1), "kind 'exponential': first rate divided by last"),
  'power': Field(2.0, _above(0), "kind 'polynomial': of the share of the run that is left"),
}
_SPANNING = ('exponential', 'cosine', 'polynomial')  # their rates depend on the run's length
_KINDS = ('constant', 'step', 'exponential', 'cosine', 'polynomial')

FIELDS: dict[str, Field] = {
  'seed': Field(0, _between(0, 2**31 - 1), 'fixes initialization, order, views and dropout'),
  'epochs': Field(90.0, _above(0), 'length of the run; may be a fraction'),
  'batch_size': Field(128, _between(1), 'images per step over all devices'),
  'grad_accum_steps': Field(
    1, _between(1), "parts a device's batch is processed in, to save memory"
  ),
  'steps_per_call': Field(
    1, _between(1), 'steps made without the host; above 1 the devices keep all training images'
  ),
  'label_smoothing': Field(
    0.0, _between(0, 0.9), 'share of the target spread evenly over the classes'
  ),
  'ema_decay': Field(
    0.0, _between(0, 0.99999), 'evaluate a moving average of the weights; 0: the weights'
  ),
  'deterministic': Field(
    False, _anything, 'have a GPU repeat itself to the bit, which is slower; others always do'
  ),
  'weights': Field('', _on_disk, 'start from the net in this file or workdir; "": at random'),
  'model.net': Field('krizhevsky2012', _one_of(*nets.NETS), 'a table of alexnet_jax/model/nets.py'),
  'model.ablations': Field(
    (), _ablations, 'ablations of alexnet_jax/model/ablations.py, in this order'
  ),
  'model.compute_dtype': Field(
    'float32', _one_of('float32', 'bfloat16'), 'type of activations and products'
  ),
  'model.ghost_batch': Field(
    0, _between(0), 'images per batch-norm moment on a device; 0: the global batch'
  ),
  'model.onednn': Field(
    'auto',
    _one_of('auto', 'on', 'off'),
    'convolve in float32 on a CPU by oneDNN, slower to start; auto: where it is faster, AVX-512',
  ),
  'model.shard_dense': Field(
    False, _anything, 'spread the dense layers over the devices: docs/performance.md says when'
  ),
  'data.source': Field(
    'tfds', _one_of('tfds', 'folder', 'digits', 'synthetic'), 'where images come from'
  ),
  'data.name': Field('imagenet2012', _anything, 'TFDS data set'),
  'data.dir': Field(
    '', _on_disk, 'TFDS data dir or image folder; "": $TFDS_DATA_DIR, then ~/tensorflow_datasets'
  ),
  'data.store': Field('', _on_disk, 'the prepared store; "": beside data.dir'),
  'data.image_size': Field(256, _between(8, 1024), 'side of the stored square images'),
  'data.resize': Field(
    'crop', _one_of('crop', 'warp'), 'crop: shorter side, then center; warp: both sides'
  ),
  'data.encoding': Field(
    'raw', _one_of('raw', 'jpeg'), 'raw pixels; or jpeg for small disks, decoded when seen'
  ),
  'data.jpeg_quality': Field(90, _between(1, 100), "quality with encoding 'jpeg'"),
  'data.train_split': Field('train', _anything, 'TFDS split to train on'),
  'data.eval_split': Field('validation', _anything, 'TFDS split to evaluate on'),
  'data.validation_fraction': Field(
    0.2, _above(0, 0.9), 'held-out share where the data has no validation part'
  ),
  'data.unreadable': Field('error', _one_of('error', 'skip'), 'what to do with broken images'),
  'data.num_classes': Field(0, _between(0), 'number of classes; 0: as many as the data has'),
  'data.train_examples': Field(0, _between(0), 'train on this many random images; 0: all'),
  'data.synthetic_examples': Field(1024, _between(2), 'generated training images'),
  'input.crop': Field(224, _between(8, 1024), 'side of the view given to the net'),
  'input.resize_to': Field(0, _between(0, 1024), 'enlarge stored images to this; 0: as stored'),
  'input.random_crop': Field(True, _anything, 'crop at random in training, else centrally'),
  'input.random_flip': Field(True, _anything, 'mirror half of the training views'),
  'input.color_noise': Field(
    0.1, _between(0, 10), 'color noise in standard deviations of the RGB components'
  ),
  'input.color_noise_epochs': Field(0.0, _between(0), 'epochs with color noise; 0: to the end'),
  'input.color_statistics': Field(
    '2012', _one_of('2012', 'data'), "components as released in 2012, or the data's own"
  ),
  'input.normalization': Field(
    'mean_image',
    _one_of(
      'mean_image', 'mean_pixel', 'mean_scalar', 'standardize', 'torchvision', 'none', 'weights'
    ),
    'what is subtracted (and divided by) before the net; weights: as they were trained with',
  ),
  'input.scale': Field(1.0, _above(0), 'multiplies the normalized pixels'),
  'optimizer.name': Field('momentum', _one_of('momentum', 'adam', 'lars'), 'update rule'),
  'optimizer.learning_rate': Field(0.01, _above(0), 'initial rate of the kernels'),
  'optimizer.base_batch_size': Field(
    0, _between(0), 'learning_rate is for this batch and scales linearly; 0: it does not'
  ),
  'optimizer.bias_lr_multiplier': Field(2.0, _above(0), "biases' initial rate over the kernels'"),
  'optimizer.momentum': Field(0.9, _between(0, 0.9999), "momentum, or Adam's beta1"),
  'optimizer.beta2': Field(0.999, _above(0, 0.99999), "Adam's beta2"),
  'optimizer.epsilon': Field(1e-8, _above(0), "Adam's epsilon"),
  'optimizer.trust_coefficient': Field(0.001, _above(0), "LARS's eta"),
  'optimizer.weight_decay': Field(0.0005, _between(0), 'decay of the kernels'),
  'optimizer.decay_biases': Field(False, _anything, 'whether biases decay too'),
  'optimizer.layer_weight_decay': Field({}, _anything, 'decay of single layers, {layer: factor}'),
  'optimizer.layer_lr_factors': Field(
    {},
    _anything,
    'factors on the rate of single layers, {layer: ((epoch, factor), ...)}; 0 freezes; of'
    ' "conv1/kernel" on its kernel alone; a layer may be called "last"',
  ),
  'optimizer.warmup_epochs': Field(0.0, _between(0), 'rise of the rate at the start'),
  'optimizer.warmup_start': Field(0.0, _between(0), 'rate that it rises from; 0: a first part'),
  'optimizer.warmup_power': Field(1.0, _above(0), '1 for a linear rise, 2 for a quadratic one'),
  'optimizer.schedule.kind': Field('step', _one_of(*_KINDS, 'plateau'), 'how the rate falls'),
  **{f'optimizer.schedule.{name}': field for name, field in _SCHEDULE.items()},
  'optimizer.schedule.patience': Field(
    3, _between(1), "kind 'plateau': evaluations without a new best before a drop"
  ),
  'optimizer.bias_schedule.kind': Field(
    'same', _one_of(*_KINDS, 'same'), "how the biases' rate falls; same: as the kernels'"
  ),
  **{f'optimizer.bias_schedule.{name}': field for name, field in _SCHEDULE.items()},
  'eval.every_epochs': Field(1.0, _above(0), 'epochs between evaluations; the end has one too'),
  'eval.batch_size': Field(256, _between(1), 'images per evaluation step over all devices'),
  'eval.views': Field(1, _one_of(1, 9, 10), 'views averaged during training'),
  'eval.final_views': Field(1, _one_of(1, 9, 10), 'views averaged at the end'),
  'checkpoint.every_epochs': Field(1.0, _above(0), 'epochs between saved states'),
  'checkpoint.max_to_keep': Field(2, _between(1), 'saved states kept besides the best'),
  'guard.max_nonfinite_steps': Field(10, _between(1), 'non-finite steps in a row that end the run'),
  'guard.flat_steps': Field(
    2000, _between(1), 'steps after which a loss still at ln(classes) is reported'
  ),
  'log.every_steps': Field(50, _between(1), 'steps between console lines'),
  'log.tensorboard': Field(True, _anything, 'write TensorBoard events'),
}

# Fields of config.optimizer whose keys are names of layers.
_BY_LAYER = ('layer_weight_decay', 'layer_lr_factors')

# With `weights`, these fields may be empty ('' or 0), and are then those of the weights.
_OF_WEIGHTS = ('model.net', 'data.image_size', 'data.resize', 'input.crop')
LAST = 'last'  # in optimizer.layer_lr_factors: the layer that gives the logits

# Fields that may differ when a run is resumed: they change where data and weights lie or what is
# printed; like another number of devices they alter the last digits of a sum at most.
HARMLESS = ('model.shard_dense', 'data.dir', 'data.store', 'log.', 'checkpoint.', 'guard.')

# Fields that may never differ when a run is resumed: they decide how many steps an epoch has, and a
# checkpoint counts steps.
FIXED = (
  'batch_size',
  'data.source',
  'data.name',
  'data.train_split',
  'data.validation_fraction',
  'data.unreadable',
  'data.train_examples',
  'data.synthetic_examples',
)


def default() -> ml_collections.ConfigDict:
  """All fields at their defaults; unknown names and other types are refused from here on."""
  tree: dict[str, Any] = {}
  for path, field in FIELDS.items():
    *sections, name = path.split('.')
    section = tree
    for part in sections:
      section = section.setdefault(part, {})
    section[name] = field.default
  return ml_collections.ConfigDict(tree).lock()


def left_open(config: ml_collections.ConfigDict) -> list[str]:
  """What `weights.start.complete` has to fill in before the config can be validated."""
  named_last = [
    f'optimizer.layer_lr_factors.{name}'
    for name in config.optimizer.layer_lr_factors
    if name.partition('/')[0] == LAST
  ]
  return [path for path in _OF_WEIGHTS if not _get(config, path)] + named_last


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming the first field whose value or combination is not allowed."""
  for path, field in FIELDS.items():
    value = _get(config, path)
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f'config.{path}={value}: must be a finite number')
    if allowed := field.check(value):
      raise UserError(f'config.{path}={value!r}: must be {allowed} ({field.meaning})')
  if config.input.normalization == 'weights' and not config.weights:
    raise UserError(
      'config.input.normalization=weights: there are none; set --config.weights to the file or run'
      ' to start from'
    )
  if config.input.normalization == 'weights' and config.input.scale != 1:
    raise UserError(
      f'config.input.scale={config.input.scale}: input.normalization=weights scales as the weights'
      ' need it; use 1'
    )
  table = _table(config)
  _check_layers(config.optimizer, table)
  _check_views(config)
  has_norm = any(isinstance(row, layers.BatchNorm) for row in table)
  if config.model.ghost_batch and not has_norm:
    raise UserError(
      f'config.model.ghost_batch={config.model.ghost_batch}: net'
      f' {nets.title(config.model)} has no batch normalization; set it to 0'
    )
  if config.grad_accum_steps > 1 and has_norm and not config.model.ghost_batch:
    raise UserError(
      f'config.grad_accum_steps={config.grad_accum_steps}: batch normalization would not'
      ' see the global batch; set model.ghost_batch to the images of a micro-batch on'
      ' a device, or grad_accum_steps to 1'
    )
  if config.data.encoding == 'jpeg' and config.data.source in ('digits', 'synthetic'):
    raise UserError(
      f'config.data.encoding=jpeg: images of source {config.data.source} are made in'
      ' memory and never stored; use raw'
    )
  if (
    config.data.encoding == 'raw'
    and config.data.jpeg_quality != FIELDS['data.jpeg_quality'].default
  ):
    raise UserError(
      f'config.data.jpeg_quality={config.data.jpeg_quality}: only used with'
      ' --config.data.encoding=jpeg'
    )
  if (
    config.data.source in ('tfds', 'folder')
    and config.data.synthetic_examples != FIELDS['data.synthetic_examples'].default
  ):
    raise UserError(
      f'config.data.synthetic_examples={config.data.synthetic_examples}: only used'
      ' with --config.data.source=synthetic'
    )


def _check_layers(optimizer, table: layers.Table) -> None:
  known = [row.name for row in table if isinstance(row, (layers.Conv, layers.Dense))]
  parameters = [f'{name}/{parameter}' for name in known for parameter in ('kernel', 'bias')]
  for field in _BY_LAYER:
    for name in optimizer[field]:
      if name not in known and not (field == 'layer_lr_factors' and name in parameters):
        raise UserError(
          f'config.optimizer.{field}: no layer {name!r} with a kernel in this net;'
          f' it has {", ".join(known)}'
        )
  if not optimizer.warmup_epochs and (optimizer.warmup_start or optimizer.warmup_power != 1):
    raise UserError(
      f'config.optimizer.warmup_start={optimizer.warmup_start:g} with warmup_power='
      f'{optimizer.warmup_power:g}: only used with optimizer.warmup_epochs above 0'
    )
  for name, decay in optimizer.layer_weight_decay.items():
    number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
    if not number or not 0 <= decay < math.inf:
      raise UserError(
        f'config.optimizer.layer_weight_decay.{name}={decay!r}: must be a number of at least 0'
      )
  for name, changes in optimizer.layer_lr_factors.items():
    try:
      epochs = [float(epoch) for epoch, _ in changes]
      later = epochs[1:] if epochs[:1] == [0] else epochs  # at 0: from the first step on
      valid = not _increasing(later) and all(0 <= float(factor) < math.inf for _, factor in changes)
    except (TypeError, ValueError):
      valid = False
    if not valid:
      raise UserError(
        f'config.optimizer.layer_lr_factors.{name}={changes!r}: must be pairs of'
        ' increasing epoch and factor, such as ((0.0, 0.1), (72.0, 0.0))'
      )


def _check_views(config) -> None:
  size = config.input.resize_to or config.data.image_size
  if config.input.resize_to and config.input.resize_to < config.data.image_size:
    raise UserError(
      f'config.input.resize_to={config.input.resize_to}: must be 0 or at least'
      f' data.image_size={config.data.image_size}'
    )
  if config.input.crop > size:
    raise UserError(
      f'config.input.crop={config.input.crop}: larger than the images ({size});'
      ' lower it, or raise data.image_size or input.resize_to'
    )
  for field in ('views', 'final_views'):
    if config.eval[field] > 1 and config.input.crop == size:
      raise UserError(
        f'config.eval.{field}={config.eval[field]}: all views are the same because'
        f' input.crop is the whole image ({size}); use 1'
      )


def _table(config) -> layers.Table:
  try:
    table = nets.table_of(config, config.data.num_classes or 2)
    layers.count_macs(table, (config.input.crop, config.input.crop, 3))
    return table
  except ValueError as error:
    raise UserError(
      f'config.model.net={nets.title(config.model)} with input.crop={config.input.crop}: {error}'
    ) from None


def nearest(path: str, prefix: str = '') -> str:
  """Advice about a name that is no field: the one that looks or sounds like it, if any does.

  `optimizer.lr` is learning_rate: initials count for more than letters in common.
  """
  section, _, name = path.rpartition('.')
  initials = [
    field
    for field in FIELDS
    if field.startswith(section) and ''.join(w[0] for w in field.split('.')[-1].split('_')) == name
  ]
  near = initials or difflib.get_close_matches(path, FIELDS, 1, 0.5)
  if not near:
    return 'the fields are listed in alexnet_jax/config.py'
  return f'did you mean {prefix}{near[0]}?'


def _get(config, path: str):
  for part in path.split('.'):
    config = config[part]
  return config


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Plain nested dicts, lists and scalars, as they come back from a JSON file."""
  return json.loads(config.to_json())


def from_json(values: dict[str, Any]) -> ml_collections.ConfigDict:
  """The config that `to_json` wrote; fields that are missing there get their defaults.

  Raises:
    UserError: a field that is not known, of another type, or with a value that is not allowed.
  """
  config = default()
  try:
    given = values.get('optimizer', {})
    layers_of = {name: given.get(name, {}) for name in _BY_LAYER}
    optimizer = {name: value for name, value in given.items() if name not in _BY_LAYER}
    config.update({**values, 'optimizer': optimizer})
    for name, by_layer in layers_of.items():
      config.optimizer[name] = {layer: _tuples(value) for layer, value in by_layer.items()}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'this config was written by another version ({reason})') from None
  validate(config)
  return config


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flatten(tree: dict, prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = value
  return flat


def diff(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
  """Fields that differ between two configs as `to_json` gives them: {path: (old, new)}."""
  old, new = flatten(old), flatten(new)
  return {
    path: (old.get(path), new.get(path))
    for path in sorted({*old, *new})
    if old.get(path) != new.get(path)
  }


def alters_run(path: str, old: Any, new: Any, config: ml_collections.ConfigDict) -> bool:
  """Whether a change of one field makes the steps that were done those of another run.

  More epochs do not, unless the rate's schedule spans the whole run.
  """
  if path == 'epochs':
    kinds = {config.optimizer.schedule.kind, config.optimizer.bias_schedule.kind}
    return new < old or bool(kinds & set(_SPANNING))
  return not path.startswith(HARMLESS)
