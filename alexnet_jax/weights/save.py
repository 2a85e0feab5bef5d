"""`Pretrained` -> a file, in the form that its suffix says."""

from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights import layouts, npz, safetensors, stablehlo, torch_file

FORMS = {
  '.npz': npz.write,
  '.pth': lambda pretrained: torch_file.write_zip(layouts.torchvision_state(pretrained)),
  '.safetensors': lambda pretrained: safetensors.write(layouts.torchvision_state(pretrained)),
  '.stablehlo': stablehlo.write,
}


def check_suffix(path: Path) -> None:
  """Raises UserError unless a file of this name can be written."""
  if path.suffix not in FORMS:
    raise UserError(f'{path} has to end in {", ".join(FORMS)}: that says what to write')


def save(pretrained: Pretrained, path: Path) -> int:
  """Writes a file and returns its bytes.

  Raises:
    UserError: the form cannot hold this net, or the file cannot be written.
  """
  check_suffix(path)
  try:
    data = FORMS[path.suffix](pretrained)
    files.write(path, data)
  except ValueError as error:
    raise UserError(f'{path} cannot be written: {error}; .npz or .stablehlo hold any net') from None
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}') from None
  return len(data)
