"""`Pretrained` -> a file, in the form that its suffix says."""

from pathlib import Path

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights import layouts, npz, safetensors, stablehlo, torch_file


def _onnx(pretrained: Pretrained, preprocessing: bool = False) -> bytes:
  try:
    from alexnet_jax.weights import onnx_writer
  except ModuleNotFoundError as error:
    raise ValueError(f'{error.name} is not installed: pip install {error.name}') from None
  return onnx_writer.write(pretrained, preprocessing)


FORMS = {
  '.npz': npz.write,
  '.pth': lambda pretrained: torch_file.write_zip(layouts.torchvision_state(pretrained)),
  '.safetensors': lambda pretrained: safetensors.write(layouts.torchvision_state(pretrained)),
  '.stablehlo': stablehlo.write,
  '.onnx': _onnx,
}


def check_suffix(path: Path, preprocessing: bool = False) -> None:
  """Raises UserError unless a file of this name can be written, with preprocessing if wanted."""
  if path.suffix not in FORMS:
    raise UserError(f'{path} has to end in {", ".join(FORMS)}: that says what to write')
  if preprocessing and path.suffix != '.onnx':
    raise UserError(
      f'--preprocessing is for .onnx: leave it out, or write another file than {path}'
    )


def save(pretrained: Pretrained, path: Path, preprocessing: bool = False) -> int:
  """Writes a file and returns its bytes.

  Args:
    pretrained: what to write.
    path: where; its suffix says in which form.
    preprocessing: whether crop, mean and scale are inside; ONNX only.

  Raises:
    UserError: the form cannot hold this net, or the file cannot be written.
  """
  check_suffix(path, preprocessing)
  try:
    data = _onnx(pretrained, True) if preprocessing else FORMS[path.suffix](pretrained)
  except ValueError as error:
    raise UserError(f'{path} cannot be written: {error}; .npz or .stablehlo hold any net') from None
  with files.one_line_error(str(path)):
    files.write(path, data)
  return len(data)
