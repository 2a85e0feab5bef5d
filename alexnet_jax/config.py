"""The config: every field with its default, allowed values, meaning, and when it is used.

A config file calls `default()` and changes fields; the command line changes more.  ml_collections
refuses unknown fields and wrong types at once; `validate` checks values and combinations.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.model.ablations import EDITS
from alexnet_jax.terminal import did_you_mean

Check = Callable[[Any], str | None]  # None if the value is allowed, else what would be


def _one_of(*allowed) -> Check:
  return lambda value: None if value in allowed else 'one of ' + ', '.join(map(str, allowed))


def _between(low: float, high: float = math.inf, above: bool = False) -> Check:
  bottom = f'{"more than" if above else "at least"} {low:g}'
  top = f' and at most {high:g}' if high < math.inf else ''
  return lambda value: (
    None if low <= value <= high and not (above and value == low) else bottom + top
  )


_above = functools.partial(_between, above=True)


def _increasing(value) -> str | None:
  if _numbers(value) and all(a < b for a, b in zip((0, *value), (*value, math.inf), strict=True)):
    return None
  return 'increasing positive epochs, such as (25.0, 51.0)'


def _numbers(values) -> bool:
  return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)


def _decays(value) -> str | None:
  if _numbers(value.values()) and all(0 <= decay < math.inf for decay in value.values()):
    return None
  return "numbers of at least 0 by layer, such as {'fc8': 0.001}"


def _factors(value) -> str | None:
  try:
    for changes in value.values():
      epochs, factors = zip(*changes, strict=True)
      later = epochs[1:] if epochs[0] == 0 else epochs  # at 0: from the first step on
      if _increasing(later) or _decays(dict(enumerate(factors))):
        raise ValueError
  except (TypeError, ValueError):
    return (
      "pairs of increasing epoch and factor by layer, such as {'conv1': ((0.0, 0.1), (72.0, 0.0))}"
    )
  return None


def _ablations(value) -> str | None:
  if all(isinstance(name, str) and name in EDITS for name in value):
    return None
  return 'a tuple of ' + ', '.join(EDITS)


def _on_disk(value: str) -> str | None:
  return 'on a disk of this machine: copy it there first' if '://' in value else None


def _any(value) -> None:
  del value


class Condition(NamedTuple):
  """What has to hold in a config for a field to have an effect, in words and as a function."""

  text: str
  holds: Callable[[ml_collections.ConfigDict], bool]


def _is(field: str, *values) -> Condition:
  return Condition(f'{field}={" or ".join(values)}', lambda config: get(config, field) in values)


def _positive(field: str) -> Condition:
  return Condition(f'{field} above 0', lambda config: get(config, field) > 0)


_SOURCES = ('tfds', 'folder', 'digits', 'synthetic')
_FILES = _is('data.source', 'tfds', 'folder')
_TFDS = _is('data.source', 'tfds')
_JPEG = Condition(
  f'{_FILES.text} and data.encoding=jpeg',
  lambda config: _FILES.holds(config) and config.data.encoding == 'jpeg',
)
_ADAM, _LARC = _is('optimizer.name', 'adam'), _is('optimizer.name', 'larc')
_NOISE = _positive('input.color_noise')
_WARMUP = _positive('optimizer.warmup_epochs')
_BORDER = Condition(
  'input.crop below the size of the images', lambda config: config.input.crop < image_size(config)
)
_BATCH_NORM = Condition('a model.net with batch normalization', nets.has_batch_norm)
_DECAY = Condition(
  'a weight decay above 0',
  lambda config: any(
    (config.optimizer.weight_decay, *config.optimizer.layer_weight_decay.values())
  ),
)


@dataclasses.dataclass(frozen=True)
class Field:
  """A config field.

  Attributes:
    default: its value if a config does not set it; also fixes the type.
    check: value -> None if it is allowed, else what would be.
    meaning: what it does, for people.
    used_if: the condition under which it has an effect; None: always. If it has none, typing it on
      the command line is an error.
    alters_run: whether the training done so far depends on it.  If so, a run is resumed with
      another value only with --allow_change.
    alters_epochs: whether the number of steps in an epoch depends on it.  Checkpoints count steps,
      so a run is never resumed with another value.
  """

  default: Any
  check: Check
  meaning: str
  used_if: Condition | None = None
  alters_run: bool = True
  alters_epochs: bool = False


# May differ when a run is resumed: the results are the same, but for rounding.
_free = functools.partial(Field, alters_run=False)
# May never differ: see `Field.alters_epochs`.
_fixed = functools.partial(Field, alters_epochs=True)

SPANNING = ('exponential', 'cosine', 'polynomial')  # their rates depend on the run's length
_KINDS = ('constant', 'step', *SPANNING)


def _schedule(section: str, *drops: str) -> dict[str, Field]:
  """Fields of a schedule besides its kind; kinds named in `drops` use its `factor`."""
  kind = f'{section}.kind'
  spread, power = _is(kind, 'exponential'), _is(kind, 'polynomial')
  return {
    f'{section}.milestones': Field((), _increasing, 'epochs of rate drops', _is(kind, 'step')),
    f'{section}.factor': Field(
      0.1, _above(0, 1), 'the rate is multiplied by this at each drop', _is(kind, *drops)
    ),
    f'{section}.levels': Field(4, _between(1, 1000), 'rates, each for an equal time', spread),
    f'{section}.target_factor': Field(250.0, _between(1), 'first rate divided by the last', spread),
    f'{section}.power': Field(
      2.0, _above(0), 'the rate falls as (share of the run that is left) ** power', power
    ),
  }


FIELDS: dict[str, Field] = {
  'seed': Field(0, _between(0, 2**31 - 1), 'of initialization, order, augmentation, dropout'),
  'epochs': Field(90.0, _above(0), 'length of the run; may be a fraction'),
  'batch_size': _fixed(128, _between(1), 'images per step over all devices'),
  'grad_accum_steps': Field(1, _between(1), 'micro-batches per batch, to save memory'),
  'steps_per_call': Field(
    1,
    _between(1),
    'training steps in one call of the compiled program, to spare a GPU the wait for its host;'
    ' above 1, every device holds all training images',
  ),
  'label_smoothing': Field(0.0, _between(0, 0.9), 'share of the target spread over all classes'),
  'ema_decay': Field(0.0, _between(0, 0.99999), 'evaluate averaged weights; 0: no average'),
  'deterministic': Field(False, _any, 'on a GPU: the same bits every time, but slower'),
  'weights': Field('', _on_disk, 'start from this file, workdir or packaged net; "": at random'),
  'model.net': Field('krizhevsky2012', _one_of(*nets.NETS), 'name of a net, see model/nets.py'),
  'model.width': Field(
    1.0, _one_of(*nets.WIDTHS), 'factor on the features of all layers but the last'
  ),
  'model.ablations': Field((), _ablations, 'those that edit the net, see model/ablations.py'),
  'model.compute_dtype': Field('float32', _one_of('float32', 'bfloat16'), 'type of activations'),
  'model.ghost_batch': Field(
    0, _between(0), 'images on a device per batch-norm moment; 0: the global batch', _BATCH_NORM
  ),
  'model.onednn': Field(
    'auto',
    _one_of('auto', 'on', 'off'),
    'convolve by oneDNN on a CPU, slower to start; auto: where it is faster, with AVX-512',
    _is('model.compute_dtype', 'float32'),
  ),
  'model.shard_dense': _free(False, _any, 'spread dense layers over devices: docs/performance.md'),
  'data.source': _fixed('tfds', _one_of(*_SOURCES), 'where images come from'),
  'data.name': _fixed('imagenet2012', _any, 'TFDS data set', _TFDS),
  'data.dir': _free(
    '',
    _on_disk,
    'TFDS data dir, or folder or file of images; "": $TFDS_DATA_DIR, then ~/tensorflow_datasets',
    _FILES,
  ),
  'data.store': _free('', _on_disk, 'the prepared images; "": beside data.dir', _FILES),
  'data.image_size': Field(256, _between(8, 1024), 'side of the stored square images'),
  'data.resize': Field(
    'crop', _one_of('crop', 'warp'), 'crop: shorter side, center crop; warp: both sides', _FILES
  ),
  'data.encoding': Field(
    'raw', _one_of('raw', 'jpeg'), 'stored as raw pixels, or as JPEGs, a tenth of the size', _FILES
  ),
  'data.jpeg_quality': Field(90, _between(1, 100), 'of the stored JPEGs', _JPEG),
  'data.train_split': _fixed('train', _any, 'TFDS split of the training images', _TFDS),
  'data.eval_split': Field('validation', _any, 'TFDS split of the validation images', _TFDS),
  'data.validation_fraction': _fixed(
    0.2,
    _above(0, 0.9),
    'share of the images kept for validation where the data has no validation images of its own',
    _is('data.source', 'folder', 'digits'),
  ),
  'data.unreadable': _fixed(
    'error', _one_of('error', 'skip'), 'what to do with images that cannot be read', _FILES
  ),
  'data.num_classes': Field(0, _between(0), 'number of classes; 0: as many as the data has'),
  'data.train_examples': _fixed(0, _between(0), 'train on this many random images; 0: all'),
  'data.synthetic_examples': _fixed(
    1024, _between(2), 'generated training images', _is('data.source', 'synthetic')
  ),
  'input.crop': Field(224, _between(8, 1024), 'side of the view given to the net'),
  'input.resize_to': Field(0, _between(0, 1024), 'enlarge stored images to this; 0: as stored'),
  'input.random_crop': Field(True, _any, 'crop at random in training, else centrally', _BORDER),
  'input.random_flip': Field(True, _any, 'flip half of the training views horizontally'),
  'input.color_noise': Field(
    0.1,
    _between(0, 10),
    'standard deviation of alpha, the noise along principal components of RGB (paper section 4.1)',
  ),
  'input.color_noise_epochs': Field(0.0, _between(0), 'epochs with color noise; 0: all', _NOISE),
  'input.color_statistics': Field(
    '2012', _one_of('2012', 'data'), "RGB components as released in 2012, or the data's own", _NOISE
  ),
  'input.normalization': Field(
    'mean_image',
    _one_of(*'mean_image mean_pixel mean_scalar standardize torchvision none weights'.split()),
    'what is subtracted from the pixels (and divides them); weights: what they were trained with',
  ),
  'input.scale': Field(1.0, _above(0), 'multiplies the normalized pixels'),
  'optimizer.name': Field(
    'momentum',
    _one_of('momentum', 'adam', 'larc'),
    'update rule: momentum as in 2012, Adam, or LARC (LARS with clipping), see train/optimizer.py',
  ),
  'optimizer.learning_rate': Field(0.01, _above(0), 'initial rate of the kernels'),
  'optimizer.base_batch_size': Field(
    0, _between(0), 'learning_rate is for this batch size, and scales with batch_size; 0: unscaled'
  ),
  'optimizer.bias_lr_multiplier': Field(
    2.0, _above(0), 'initial bias learning rate divided by that of the kernels'
  ),
  'optimizer.momentum': Field(0.9, _between(0, 0.9999), "momentum, or Adam's beta1"),
  'optimizer.beta2': Field(0.999, _above(0, 0.99999), "Adam's beta2", _ADAM),
  'optimizer.epsilon': Field(1e-8, _above(0), "Adam's epsilon", _ADAM),
  'optimizer.trust_coefficient': Field(
    0.001, _above(0), 'a rate is at most (1 - momentum) * this * |w| / |gradient|', _LARC
  ),
  'optimizer.weight_decay': Field(0.0005, _between(0), 'decay of the kernels'),
  'optimizer.decay_biases': Field(False, _any, 'whether biases decay too', _DECAY),
  'optimizer.layer_weight_decay': Field({}, _decays, 'in place of weight_decay, {layer: decay}'),
  'optimizer.layer_lr_factors': Field(
    {},
    _factors,
    'factors on the rate of a layer ("conv1") or parameter ("conv1/kernel") from an epoch on,'
    ' {name: ((epoch, factor), ...)}; 0 freezes it; "last" is the layer of the logits',
  ),
  'optimizer.warmup_epochs': Field(0.0, _between(0), 'epochs of warm-up of the rate'),
  'optimizer.warmup_start': Field(
    0.0, _between(0), 'rate at step 0; 0: learning_rate / warm-up steps', _WARMUP
  ),
  'optimizer.warmup_power': Field(1.0, _above(0), '1: linear warm-up, 2: quadratic', _WARMUP),
  'optimizer.schedule.kind': Field('step', _one_of(*_KINDS, 'plateau'), 'how the rate changes'),
  # optimizer.schedule.milestones, optimizer.schedule.factor, optimizer.schedule.levels,
  # optimizer.schedule.target_factor, optimizer.schedule.power:
  **_schedule('optimizer.schedule', 'step', 'plateau'),
  'optimizer.schedule.patience': Field(
    3,
    _between(1),
    'evaluations without a new lowest error before the rate drops',
    _is('optimizer.schedule.kind', 'plateau'),
  ),
  'optimizer.bias_schedule.kind': Field(
    'same', _one_of(*_KINDS, 'same'), "how the biases' rate changes; same: as the kernels'"
  ),
  # optimizer.bias_schedule.milestones, optimizer.bias_schedule.factor,
  # optimizer.bias_schedule.levels, optimizer.bias_schedule.target_factor,
  # optimizer.bias_schedule.power:
  **_schedule('optimizer.bias_schedule', 'step'),
  'eval.every_epochs': Field(1.0, _above(0), 'epochs between evaluations; the end has one too'),
  'eval.batch_size': Field(256, _between(1), 'images per evaluation step over all devices'),
  'eval.views': Field(1, _one_of(1, 9, 10), 'views averaged during training'),
  'eval.final_views': Field(1, _one_of(1, 9, 10), 'views averaged at the end'),
  'checkpoint.every_epochs': _free(1.0, _above(0), 'epochs between checkpoints'),
  'checkpoint.max_to_keep': _free(2, _between(1), 'latest checkpoints kept, besides the best'),
  'guard.max_nonfinite_steps': _free(10, _between(1), 'non-finite steps in a row that end the run'),
  'guard.flat_steps': _free(
    2000,
    _between(1),
    'warn if, after as many steps, the loss is still that of guessing, ln(classes)',
  ),
  'log.every_steps': _free(50, _between(1), 'steps between lines of metrics'),
  'log.tensorboard': _free(True, _any, 'write TensorBoard events'),
}

# With `weights`, these fields may be empty ('' or 0): the weights fill them in.
_OF_WEIGHTS = ('model.net', 'data.image_size', 'data.resize', 'input.crop')
LAST = 'last'  # in optimizer.layer_lr_factors: the layer that gives the logits


def find_field(path: str, flag: str = '') -> Field:
  """The field of a dotted path, which may end with a layer as "optimizer.layer_lr_factors.conv1".

  Raises:
    UserError: there is none; the message begins with `flag`, such as "--grid=".
  """
  section = path.rpartition('.')[0]
  if section in FIELDS:
    path = section
  if path not in FIELDS:
    hint = did_you_mean(path, FIELDS) or 'the fields are listed in alexnet_jax/config.py'
    raise UserError(f'{flag}{path} is not a field: {hint}')
  return FIELDS[path]


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


def fields_from_weights(config: ml_collections.ConfigDict) -> list[str]:
  """Empty fields, to be filled in by `weights.initial.fill_from_weights` before `validate`."""
  named_last = [
    f'optimizer.layer_lr_factors.{name}'
    for name in config.optimizer.layer_lr_factors
    if name.partition('/')[0] == LAST
  ]
  return [path for path in _OF_WEIGHTS if not get(config, path)] + named_last


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming the first field whose value or combination is not allowed."""
  for path, field in FIELDS.items():
    value = get(config, path)
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f'config.{path}={value}: must be a finite number')
    if allowed := field.check(value):
      shown = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
      raise UserError(f'config.{path}={shown!r}: must be {allowed} ({field.meaning})')
  size, crop = image_size(config), config.input.crop
  if config.input.normalization == 'weights':
    if not config.weights:
      raise UserError(
        'config.input.normalization=weights: needs --config.weights, the file or run to start from'
      )
    if config.input.scale != 1:
      raise UserError(
        f'config.input.scale={config.input.scale}: input.normalization=weights scales as the'
        ' weights need it; use 1'
      )
  if size < config.data.image_size:
    raise UserError(
      f'config.input.resize_to={size}: must be 0 or at least'
      f' data.image_size={config.data.image_size}'
    )
  if crop > size:
    raise UserError(
      f'config.input.crop={crop}: larger than the images ({size});'
      ' lower it, or raise data.image_size or input.resize_to'
    )
  for name in ('views', 'final_views'):
    if config.eval[name] > 1 and crop == size:
      raise UserError(
        f'config.eval.{name}={config.eval[name]}: all views are the same because'
        f' input.crop is the whole image ({size}); use 1'
      )
  nets.check_net(config)


def image_size(config: ml_collections.ConfigDict) -> int:
  """Side in pixels of the images that views are cut from."""
  return config.input.resize_to or config.data.image_size


def unused_reason(config: ml_collections.ConfigDict, path: str) -> str:
  """Why a field has no effect in a config, such as "only used with ..."; '' if it has one."""
  condition = find_field(path).used_if
  return '' if not condition or condition.holds(config) else f'only used with {condition.text}'


def get(config: ml_collections.ConfigDict, path: str) -> Any:
  """The value of a field by its dotted name."""
  for part in path.split('.'):
    config = config[part]
  return config


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config as nested dicts, lists and scalars."""
  return json.loads(config.to_json())


def from_json(values: dict[str, Any]) -> ml_collections.ConfigDict:
  """The config that `to_json` made; fields missing there get their defaults.

  Raises:
    UserError: a field that is not known, of another type, or with a value that is not allowed.
  """
  config = default()
  optimizer = config.optimizer
  try:
    with optimizer.layer_weight_decay.unlocked(), optimizer.layer_lr_factors.unlocked():
      config.update(_tuples(values))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'this config was written by another version ({reason})') from None
  validate(config)
  return config


def _tuples(value):
  if isinstance(value, dict):
    return {name: _tuples(each) for name, each in value.items()}
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
