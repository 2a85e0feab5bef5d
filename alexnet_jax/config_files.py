"""Where --config finds its file: on disk, else among the configs that come with the package."""

from collections.abc import Sequence
from pathlib import Path

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
  hint = did_you_mean(stem, known) or f'choose from {", ".join(known)}'
  raise UserError(f'config file {path!r} does not exist: {hint}')


def names() -> list[str]:
  """Names of the package's configs."""
  return sorted(path.stem for path in shipped().glob('[a-z]*.py'))


def with_files(argv: Sequence[str]) -> list[str]:
  """The same words with `find` of what --config says.

  Raises:
    UserError: as `find`.
  """
  found, is_value = [], False
  for word in argv:
    name, equals, value = word.lstrip('-').partition('=')
    if is_value:
      word = find(word)
    elif word.startswith('-') and name == 'config' and equals:
      word = f'--config={find(value)}'
    is_value = word in ('-config', '--config')
    found.append(word)
  return found
