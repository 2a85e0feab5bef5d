"""From `--config=FILE[:VARIANT]` and `--config.FIELD=VALUE` to a config."""

import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from alexnet_jax.config import FIELDS, find_field
from alexnet_jax.errors import UserError
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
