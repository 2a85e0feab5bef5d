"""A trained net, from wherever it is."""

import dataclasses
from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.weights.pretrained import Pretrained
from alexnet_jax.weights.workdir import load_workdir


def load(
  path: Path | str, *, classes: Path | str | None = None, checkpoint: str = 'best'
) -> Pretrained:
  """Reads the trained net at `path`, the folder of a run.

  Args:
    path: the folder.
    classes: text file with a name a line, in the order of the logits.
    checkpoint: 'best' or 'last'.

  Raises:
    UserError: it is none, or the names are not as many as its classes.
  """
  path = Path(path).expanduser()
  if not path.is_dir():
    raise UserError(f'{path} is not the folder of a run: give one, such as runs/digits')
  found = load_workdir(path, checkpoint)
  return found if classes is None else dataclasses.replace(found, classes=_names(classes, found))


def _names(path: Path | str, found: Pretrained) -> tuple[str, ...]:
  try:
    names = tuple(Path(path).read_text(encoding='utf-8').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'class list {path} cannot be read: {error}') from None
  if len(names) != len(found.classes):
    raise UserError(
      f'class list {path} has {len(names):,} names; the net has {len(found.classes):,} classes'
    )
  return names
