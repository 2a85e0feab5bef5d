"""Weights from anywhere -> `Pretrained`: the content of a file says what it is, never its name.

    zip with data.pkl, or torch's old row of pickles   torchvision's alexnet
    safetensors                                        torchvision's alexnet
    protobuf NetParameter                              bvlc_alexnet, bvlc_reference_caffenet
    .npy with a dict of layers                         the same, as caffe-tensorflow wrote them
    protobuf ModelProto, ONNX                          the model zoo's, or torch's of torchvision's
    zip with metadata.npy                              our own, see `npz`
    folder                                             a run
    name of a net in packaged/                         that net, unless there is such a file

No code in a file is ever run.
"""

import dataclasses
import functools
import io
import re
import sys
import zipfile
from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights import caffe, layouts, npy, npz, safetensors, torch_file
from alexnet_jax.weights.unsupported_files import describe_file, describe_zip

MAX_BYTES = 4 << 30  # these nets have 244 MB, and their training checkpoints three times that
_MAX_REASON = 400  # characters
_PACKAGED = Path(__file__).parent / 'packaged'
KNOWN = (
  "torchvision's alexnet (.pth, .safetensors), BVLC's alexnet and CaffeNet (.caffemodel, .npy),"
  ' these as ONNX, our .npz, or the folder of a run'
)


def load(
  path: Path | str,
  *,
  net: str | None = None,
  classes: Path | str | None = None,
  checkpoint: str = 'best',
) -> Pretrained:
  """Reads trained weights.

  Args:
    path: a file, the folder of a run, or the name of a net that comes with the package.
    net: 'caffe' or 'caffenet', for a file that could be either: an .npy (taken for 'caffe'
      otherwise), or a .caffemodel without its pools and norms.
    classes: text file with a name a line, in the order of the logits.  Without it names come from
      `path`; else a net of 1,000 classes has ImageNet's WNIDs, any other 'class 0', 'class 1', ...
    checkpoint: of a run: 'best' or 'last'.

  Raises:
    UserError: missing, none of these, damaged, or of other shapes than the net; one line.
  """
  path = _find(expand(path, 'weights'))
  if path.is_dir():
    from alexnet_jax.weights.run_folder import load_workdir  # compiles a net, which files need not

    found = load_workdir(path, checkpoint)
  else:
    data = _bytes(path)
    try:
      found = _read(data, net, path)
    except (ValueError, OverflowError) as error:
      # Names out of the file may hold line ends, or codes that a terminal obeys.
      reason = ''.join(c if c.isprintable() else '?' for c in str(error)[:_MAX_REASON])
      raise UserError(f'{path} cannot be loaded: {reason}') from None
  if net is not None and net != found.net:
    raise UserError(f'{path} is of net {found.net}, not {net}: leave the net out')
  if classes is not None:
    names = _read_classes(Path(classes), len(found.classes))
    found = dataclasses.replace(found, classes=names)
  return found


def packaged() -> list[str]:
  """Names of the nets that come with the package."""
  return sorted(path.stem for path in _PACKAGED.glob('*.npz'))


def _find(path: Path) -> Path:
  """The path, or the file of the package's net of that name if there is nothing at the path."""
  if str(path) not in packaged():
    return path
  if path.exists():
    _say_that_it_is_not_packaged(path.absolute())
    return path
  return _PACKAGED / f'{path}.npz'


@functools.cache  # a run reads its weights twice
def _say_that_it_is_not_packaged(path: Path) -> None:
  print(f'note: {path} is used, not the net of that name in the package', file=sys.stderr)


def _bytes(path: Path) -> bytes:
  if not path.is_file():
    what = 'is neither a file nor a folder' if path.exists() else 'does not exist'
    names = ', '.join(packaged())
    raise UserError(f'{path} {what}: give {KNOWN}; or a net that comes with the package: {names}')
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UserError(f'{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read')
    return path.read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None


def _read(data: bytes, net: str | None, path: Path) -> Pretrained:
  name = path.name
  if data[:4] == b'PK\x03\x04':
    files = _zip_members(data)
    if 'metadata.npy' in files:
      return npz.read(data)
    if not any(member.endswith('data.pkl') for member in files):
      raise ValueError(f'it is {describe_zip(files)}; wanted: {KNOWN}')
    return layouts.from_torchvision(torch_file.read_zip(files), name)
  if data[:1] == b'\x80':
    return layouts.from_torchvision(torch_file.read_legacy(data), name)
  if data[8:10] == b'{"':
    return layouts.from_torchvision(safetensors.read(data), name)
  if data[:6] == npy.MAGIC:
    return layouts.from_caffe(npy.read(data), net or 'caffe', name)
  if re.match(rb'\x08[\x02-\x1f]', data):  # its version, where Caffe has a text
    return _read_onnx(data, path)
  if what := describe_file(data):
    raise ValueError(f'it is {what}; wanted: {KNOWN}')
  try:
    told, arrays = caffe.read(data)
  except ValueError as error:
    raise ValueError(f'a .caffemodel is the nearest that it looks like, but {error}') from None
  return layouts.from_caffe(arrays, told or net or 'caffe', name)


def _read_onnx(data: bytes, path: Path) -> Pretrained:
  try:
    from alexnet_jax.weights import onnx_reader
  except ModuleNotFoundError as error:
    raise ValueError(f'{error.name} is not installed: pip install {error.name}') from None
  net, crop, arrays = onnx_reader.read(data, path.parent)
  return layouts.from_onnx(arrays, net, crop, path.name)


def _zip_members(data: bytes) -> dict[str, bytes]:
  """Files of an archive as torch.save and np.savez write it: stored, so that nothing can swell.

  Raises:
    ValueError: damaged, compressed, or with more in it than the archive has bytes.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
      entries = file.infolist()
      stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
      fits = sum(entry.file_size for entry in entries) <= len(data)
      files = {entry.filename: file.read(entry) if stored and fits else b'' for entry in entries}
  except Exception as error:  # zipfile fails in many ways on damaged bytes
    raise ValueError(f'its zip archive is damaged ({" ".join(str(error).split())[:80]})') from None
  if not (stored and fits):
    raise ValueError(f'it is compressed, which torch.save never does, and {describe_zip(files)}')
  return files


def _read_classes(path: Path, count: int) -> tuple[str, ...]:
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or 'not UTF-8 text'
    raise UserError(f'class list {path} cannot be read: {reason}') from None
  names = tuple(line.strip() for line in text.splitlines() if line.strip())
  if len(names) != count:
    raise UserError(f'class list {path} has {len(names):,} names; the net has {count:,} classes')
  return names
