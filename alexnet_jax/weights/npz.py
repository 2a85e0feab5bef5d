"""Our own file: `.npz` with an array per parameter and the rest as JSON; NumPy opens it.

- `params/<layer>/kernel`, `.../bias`: float32, in the layout of `AlexNet`;
- `batch_stats/<layer>/mean`, `.../var`: float32, of nets with batch normalization;
- `preprocessing/mean`, `scale`, `color_basis`: float32;
- `metadata`: uint8, UTF-8 JSON of format, version, source, net, width (1 if absent), ablations,
  classes, image_size, resize, and what else the preprocessing consists of.
"""

import io
import json

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from alexnet_jax.data.images import RESIZES
from alexnet_jax.model.nets import NETS, WIDTHS, make_table
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights.layouts import MAX_CLASSES, checked, shapes

FORMAT, VERSION = 'alexnet_jax', 1
_MAX_SIDE = 4096
_ARRAYS = ('mean', 'scale', 'color_basis')
_SIZES = ('image_size', 'crop', 'resize_to')
_SWITCHES = ('random_crop', 'random_flip', 'upright')


def write(pretrained: Pretrained) -> bytes:
  fields = vars(pretrained) | vars(pretrained.preprocessing)
  names = ('source', 'net', 'width', 'ablations', 'classes', 'resize', *_SIZES, *_SWITCHES)
  metadata = {'format': FORMAT, 'version': VERSION} | {name: fields[name] for name in names}
  arrays = flatten_dict(pretrained.variables, sep='/')
  arrays |= {f'preprocessing/{name}': fields[name] for name in _ARRAYS}
  arrays = {name: np.asarray(array, np.float32) for name, array in sorted(arrays.items())}
  buffer = io.BytesIO()
  np.savez(buffer, metadata=np.frombuffer(json.dumps(metadata).encode(), np.uint8), **arrays)
  return buffer.getvalue()


def read(data: bytes) -> Pretrained:
  """What `write` wrote.

  Raises:
    ValueError: not that, or damaged.
  """
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = dict(file)
  except Exception as error:  # NumPy fails in many ways on damaged bytes
    raise ValueError(f'an array in it is damaged ({" ".join(str(error).split())[:80]})') from None
  try:
    metadata = json.loads(arrays.pop('metadata').tobytes())
    found = metadata['format'], metadata['version']
    if found != (FORMAT, VERSION):
      raise ValueError(f'its format and version are {found!r:.40}, not {(FORMAT, VERSION)}')
    return _assemble(metadata, arrays)
  except (AttributeError, KeyError, RecursionError, TypeError) as error:
    reason = f'{type(error).__name__}: {error}'
    raise ValueError(f'its metadata is damaged ({reason:.80})') from None


def _assemble(metadata: dict, arrays: dict[str, np.ndarray]) -> Pretrained:
  sizes = [metadata[name] for name in _SIZES]
  classes, net, ablations = metadata['classes'], metadata['net'], metadata['ablations']
  width = metadata.get('width', 1.0)
  image_size, crop, resize_to = sizes
  valid = (
    type(net) is type(metadata['source']) is str
    and type(classes) is type(ablations) is list
    and 2 <= len(classes) <= MAX_CLASSES
    and all(type(name) is str for name in classes)
    and all(type(size) is int and 0 <= size <= _MAX_SIDE for size in sizes)
    and 0 < crop <= (resize_to or image_size)
    and metadata['resize'] in RESIZES
    and type(width) is float
    and width in WIDTHS
    and all(type(metadata[name]) is bool for name in _SWITCHES)
  )
  if not valid:
    raise ValueError('its metadata is damaged: a field has a value that is not allowed')
  if net not in NETS:
    raise ValueError(f'it is of net {net!r:.40}, which this version does not have')
  wanted = shapes(make_table(net, len(classes), crop, width, ablations), crop)
  wanted |= {'preprocessing/scale': (3,), 'preprocessing/color_basis': (3, 3)}
  one_mean = arrays['preprocessing/mean'].shape == (3,)
  wanted['preprocessing/mean'] = (3,) if one_mean else (crop, crop, 3)
  variables = unflatten_dict(checked(arrays, wanted, net), sep='/')
  preprocessing = variables.pop('preprocessing') | {name: metadata[name] for name in _SWITCHES}
  return Pretrained(
    source=metadata['source'],
    net=net,
    variables={'batch_stats': {}, **variables},
    classes=tuple(classes),
    image_size=image_size,
    resize=metadata['resize'],
    preprocessing=Preprocessing(crop=crop, resize_to=resize_to, **preprocessing),
    ablations=tuple(ablations),
    width=width,
  )
