"""Weights from anywhere -> `Pretrained`: the content of a file says what it is, never its name.

    zip with data.pkl, or torch's old row of pickles   torchvision's alexnet
    safetensors                                        torchvision's alexnet
    protobuf NetParameter                              bvlc_alexnet, bvlc_reference_caffenet
    .npy with a dict of layers                         the same, as caffe-tensorflow wrote them
    zip with metadata.npy                              our own, see `npz`
    folder                                             a run

No code in a file is ever run.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

from alexnet_jax.data import imagenet
from alexnet_jax.errors import UserError
from alexnet_jax.files import expand
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights import caffe, layouts, npy, npz, safetensors, torch_file
from alexnet_jax.weights.lazy_array import LazyArray
from alexnet_jax.weights.other_files import describe_file, describe_zip

MAX_BYTES = 4 << 30  # these nets have 244 MB, and their training checkpoints three times that
_MAX_REASON = 400  # characters; pickletools quotes whatever it cannot decode
CAFFE_NETS = {'caffe': 'bvlc_alexnet', 'caffenet': 'bvlc_reference_caffenet'}
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors', '.caffemodel')  # of weights in a folder
KNOWN = (
  "torchvision's alexnet (.pth, .safetensors), BVLC's alexnet and CaffeNet (.caffemodel, .npy),"
  ' our .npz, or the folder of a run'
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
    path: a file, or the folder of a run.
    net: 'caffe' or 'caffenet', for a file that could be either: an .npy (taken for 'caffe'
      otherwise), or a .caffemodel without its pools and norms.
    classes: text file with a name a line, in the order of the logits.  Without it names come from
      `path`; else a net of 1,000 classes has ImageNet's WNIDs, any other 'class 0', 'class 1', ...
    checkpoint: of a run: 'best' or 'last'.

  Raises:
    UserError: missing, none of these, damaged, or of other shapes than the net; one line.
  """
  path = expand(path, 'weights')
  if path.is_dir():
    found = _load_folder(path, checkpoint)
  else:
    data = _bytes(path)
    try:
      found = _read(data, net, path.name)
    except ValueError as error:
      # Names out of the file may hold line ends, or codes that a terminal obeys.
      reason = ''.join(c if c.isprintable() else '?' for c in str(error)[:_MAX_REASON])
      raise UserError(f'{path} cannot be loaded: {reason}') from None
  if net is not None and net != found.net:
    raise UserError(f'{path} is of net {found.net}, not {net}: leave the net out')
  if classes is not None:
    names = _read_classes(Path(classes), len(found.classes))
    found = dataclasses.replace(found, classes=names)
  return found


def _load_folder(path: Path, checkpoint: str) -> Pretrained:
  from alexnet_jax.weights.run_folder import load_workdir  # compiles a net, which files need not

  try:
    return load_workdir(path, checkpoint)
  except UserError as error:
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
      raise
    raise UserError(
      f'{path} is no run that can be used: give a file of weights, such as {files[0]}'
      f' ({str(error)[:_MAX_REASON]})'
    ) from None


def _bytes(path: Path) -> bytes:
  if not path.exists():
    raise UserError(f'{path} does not exist: give {KNOWN}')
  if not path.is_file():
    raise UserError(f'{path} is neither a file nor a folder: give {KNOWN}')
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UserError(f'{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read')
    return path.read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None


def _read(data: bytes, net: str | None, name: str) -> Pretrained:
  if data[:4] == b'PK\x03\x04':
    files = _zip_members(data)
    if 'metadata.npy' in files:
      return npz.read(files)
    if not any(member.endswith('data.pkl') for member in files):
      raise ValueError(f'it is {describe_zip(files)}; wanted: {KNOWN}')
    return _torchvision(_state_dict(torch_file.read_zip(files)), name)
  if data[:1] == b'\x80':
    return _torchvision(_state_dict(torch_file.read_legacy(data)), name)
  if data[8:10] == b'{"':
    return _torchvision(safetensors.read(data), name)
  if data[:6] == npy.MAGIC:
    return _npy(npy.read_object(data), net, name)
  if what := describe_file(data):
    raise ValueError(f'it is {what}; wanted: {KNOWN}')
  try:
    net_name, caffe_layers = caffe.read(data)
  except ValueError as error:
    raise ValueError(f'a .caffemodel is the nearest that it looks like, but {error}') from None
  if not caffe_layers:
    raise ValueError(f'it has no layers; wanted: {KNOWN}')
  return _caffe(net_name, caffe_layers, net, name)


def _zip_members(data: bytes) -> dict[str, bytes]:
  """Files of an archive as torch.save and np.savez write it: stored, so that nothing can swell.

  Raises:
    ValueError: damaged, compressed, or with more in it than the archive has bytes.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
      entries = file.infolist()
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        names = [entry.filename for entry in entries]
        raise ValueError(
          f'it is compressed, which torch.save never does, and {describe_zip(names)}'
        )
      if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError('the archive claims to hold more than it has bytes')
      return {entry.filename: file.read(entry) for entry in entries}
  except ValueError:
    raise
  except Exception as error:  # zipfile fails in many ways on damaged bytes
    raise ValueError(f'its zip archive is damaged ({" ".join(str(error).split())[:80]})') from None


def _state_dict(value) -> dict[str, LazyArray]:
  """The state dict in a file of torch.save, which may be one entry of a training checkpoint."""
  if not isinstance(value, dict):
    raise ValueError('it holds no state dict; save model.state_dict()')
  for name in ('state_dict', 'model'):
    if isinstance(value.get(name), dict):
      value = value[name]
  if not all(isinstance(key, str) and isinstance(item, LazyArray) for key, item in value.items()):
    raise ValueError('its dict holds other things than arrays by name; save model.state_dict()')
  return value


def _torchvision(blobs: dict[str, LazyArray], name: str) -> Pretrained:
  preprocessing = layouts.torchvision_preprocessing()
  found = layouts.torchvision_layers(blobs)
  params = layouts.parameters('owt', preprocessing.crop, found, rows_first=True, bgr=False)
  return _pretrained(f'torchvision alexnet, {name}', 'owt', params, 'crop', preprocessing)


def _caffe(net_name: str, caffe_layers: list[caffe.Layer], net: str | None, name: str):
  told = _caffe_net(net_name, caffe_layers)
  if net is not None and told is not None and net != told:
    raise ValueError(f'its layers are those of net {told}, not {net}: leave the net out')
  blobs = {}
  for layer in caffe_layers:
    if layer.blobs:
      # Classifiers that were trained anew have names such as fc8_flickr.
      key = 'fc8' if layer.name.startswith('fc8') else layer.name
      if key in blobs:
        raise ValueError(f'it has two layers {key:.40} with weights')
      blobs[key] = layer.blobs
  return _caffe_net_of(blobs, net or told or 'caffe', name, rows_first=True)


def _caffe_net(net_name: str, caffe_layers: list[caffe.Layer]) -> str | None:
  """CaffeNet pools before it normalizes; bvlc_alexnet normalizes before it pools."""
  kinds = [layer.type for layer in caffe_layers if layer.type.startswith(('lrn', 'pool'))]
  if kinds:
    return 'caffe' if kinds[0] == 'lrn' else 'caffenet'
  names = {'alexnet': 'caffe', 'caffenet': 'caffenet'}
  return names.get(net_name.lower())


def _npy(value, net: str | None, name: str) -> Pretrained:
  """{'conv1': [W, b], ...}, or {'conv1': {'weights': W, 'biases': b}, ...}."""
  if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
    raise ValueError('it is not a dictionary of layers')
  blobs = {}
  for layer, pair in value.items():
    if isinstance(pair, dict):
      pair = [pair.get('weights'), pair.get('biases')]
    if not isinstance(pair, list) or not all(isinstance(item, LazyArray) for item in pair):
      raise ValueError(f'layer {layer:.40} is not a pair of arrays')
    blobs[layer] = tuple(pair)
  return _caffe_net_of(blobs, net or 'caffe', name, rows_first=False)


def _caffe_net_of(blobs, net: str, name: str, *, rows_first: bool) -> Pretrained:
  if net not in CAFFE_NETS:
    raise ValueError(f'its layers are named as in Caffe: the net is one of {", ".join(CAFFE_NETS)}')
  preprocessing = layouts.caffe_preprocessing()
  params = layouts.parameters(net, preprocessing.crop, blobs, rows_first=rows_first, bgr=True)
  return _pretrained(f'Caffe {CAFFE_NETS[net]}, {name}', net, params, 'warp', preprocessing)


def _pretrained(source, net, params, resize, preprocessing) -> Pretrained:
  *_, last = params.values()
  count = len(last['bias'])
  published = imagenet.published_classes() if count == 1000 else ()
  return Pretrained(
    source=source,
    net=net,
    variables={'params': params, 'batch_stats': {}},
    classes=published or tuple(f'class {number}' for number in range(count)),
    image_size=layouts.IMAGE_SIZE,
    resize=resize,
    preprocessing=preprocessing,
  )


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
