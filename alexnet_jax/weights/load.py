"""A trained net, from wherever it is."""

from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.weights.pretrained import Pretrained
from alexnet_jax.weights.workdir import load_workdir


def load(path: Path | str) -> Pretrained:
  """Reads the trained net at `path`, the folder of a run.

  Raises:
    UserError: it is none.
  """
  path = Path(path).expanduser()
  if not path.is_dir():
    raise UserError(f'{path} is not the folder of a run: give one, such as runs/digits')
  return load_workdir(path)
