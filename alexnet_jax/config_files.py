"""Makes a config of `--config=FILE[:VARIANT]`, `--config.FIELD=VALUE` and `--ablation=NAME`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from alexnet_jax.config import FIELDS, diff, find_field, get, to_json, unused_reason, validate
from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.model.ablations import ABLATIONS
from alexnet_jax.terminal import did_you_mean

_PACKAGE = Path(__file__).parent


def shipped() -> Path:
  """The folder of the package's own configs: in an installed package, beside it in a checkout."""
  inside = _PACKAGE / 'configs'
  return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


def find(name: str) -> str:
  """The file of `FILE[:VARIANT]`, with the variant.

  Args:
    name: a file, or one of the package's configs as `digits`, `digits.py` or `configs/digits.py`.

  Raises:
    UserError: there is no such file.
  """
  path, colon, variant = name.partition(':')
  if Path(path).is_file():
    return name
  folder, stem = Path(path).parent, Path(path).name.removesuffix('.py')
  known = names()
  if folder in (Path(), Path('configs')) and stem in known:
    return f'{shipped() / stem}.py{colon}{variant}'
  hint = did_you_mean(stem, known) or f'known are {", ".join(known)}'
  raise UserError(f'config file {path!r} does not exist: {hint}')


def names() -> list[str]:
  """Names of the package's configs."""
  return sorted(path.stem for path in shipped().glob('[a-z]*.py'))


def parse(words: Sequence[str]) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Reads a config file and changes the fields that the user typed.

  Args:
    words: `--config=FILE[:VARIANT]` (see `find`) and `--config.FIELD=VALUE`, in any order.

  Returns:
    The config, not validated, and the names of the fields that were typed.

  Raises:
    UserError: no such file or field, a value of another type, or a config file that fails.
  """
  typed = {}
  for word in words:
    # '' of --config, '.seed' of --config.seed, '.deterministic' of --noconfig.deterministic
    path = word.partition('=')[0].removeprefix('--').removeprefix('no').removeprefix('config')
    if path == '':
      file = find(word.partition('=')[2])
      continue
    typed[path := path.removeprefix('.')] = word
    find_field(path, 'config.')
    if path not in FIELDS:  # as ml_collections reads "conv1/kernel", it is a division
      table, _, layer = path.rpartition('.')
      raise UserError(
        f'config.{path}: layers cannot be set one by one; give the whole table:'
        f""" --config.{table}="{{'{layer}': ...}}\""""
      )
  argv = ['', f'--config={file}', *typed.values()]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values['config'].value, list(typed)
  except Exception as error:  # whatever a config file may raise, however ml_collections wraps it
    text = str(error).strip()
    if 'Traceback' in text:  # its last line says it
      text = re.sub(r'^(\w+\.)*\w*(Error|Exception): ', '', text.splitlines()[-1])
    elif not isinstance(error, flags.Error):
      text = f'the config cannot be read: {type(error).__name__}: {text}'
    raise UserError(' '.join(text.split())) from None


def apply_ablations(
  config: ml_collections.ConfigDict, names: Sequence[str], typed: Iterable[str] = ()
) -> ml_collections.ConfigDict:
  """Applies ablations to a copy of a config, in the order given, and validates it.

  Fields whose effect depends on the machine (deterministic, model.onednn, model.shard_dense) or on
  the data (data.validation_fraction) are checked when a run starts.

  Args:
    config: without ablations.
    names: of ablations; see model/ablations.py.
    typed: fields that the user typed, which must have an effect, see `config.Field.used_if`.

  Raises:
    UserError: a field or combination that is not allowed; an ablation that is not known or changes
      nothing here; or a typed field without effect.
  """
  validate(config)
  before = config
  for name in names:
    try:
      config = _ablated(config, name)
    except (ValueError, UserError) as error:
      fitting = ', '.join(n for n in ABLATIONS if ablation_changes(config, n)) or 'none'
      raise UserError(f'--ablation={name}: {error}; those that fit here: {fitting}') from None
  for path in typed:
    old, new = get(before, path), get(config, path)
    if old != new and path != 'model.ablations':
      raise UserError(
        f'config.{path}={old}: --ablation={",".join(names)} sets it to {new}; leave one of them out'
      )
    if reason := unused_reason(config, path):
      raise UserError(f'config.{path}={new}: {reason}; leave it out, or change that too')
  return config


def ablation_changes(config: ml_collections.ConfigDict, name: str) -> dict[str, tuple[Any, Any]]:
  """The fields that an ablation changes, {field: (old, new)}; {} if it does not fit."""
  try:
    return diff(to_json(config), to_json(_ablated(config, name)))
  except (ValueError, UserError):
    return {}


def _ablated(config, name: str):
  """Raises ValueError or UserError with the reason if the ablation does not fit."""
  if name not in ABLATIONS:
    near = did_you_mean(name, ABLATIONS)
    raise ValueError('unknown ablation' + (f', {near}' if near else ''))
  fields, changed = ABLATIONS[name].fields, config.copy_and_resolve_references()
  changed.update_from_flattened_dict(fields)
  if ABLATIONS[name].edit:
    changed.model.ablations = (*config.model.ablations, name)
    nets.table_of(changed, config.data.num_classes or 2)  # which refuses what changes nothing
  else:
    changes = diff(to_json(config), to_json(changed))
    if not changes:
      raise ValueError('the config already has ' + ', '.join(f'{k}={v}' for k, v in fields.items()))
    if all(reasons := [unused_reason(config, path) for path in changes]):
      raise ValueError(f'{next(iter(changes))} is {reasons[0]}')
    if name == 'mean_scalar' and config.input.normalization != 'mean_image':
      raise ValueError(
        f'no mean image is subtracted: input.normalization is {config.input.normalization}'
      )
  validate(changed)
  return changed
