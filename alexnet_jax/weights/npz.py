"""Our own file: `.npz` with an array per parameter and the rest as JSON; NumPy opens it.

- `params/<layer>/kernel`, `.../bias`: float32, in the layout of `AlexNet`;
- `batch_stats/<layer>/mean`, `.../var`: float32, of nets with batch normalization;
- `preprocessing/mean`, `scale`, `color_basis`: float32;
- `metadata`: uint8, UTF-8 JSON of format, version, source, net, classes, image_size, resize, and
  what else the preprocessing consists of.
"""

import io
import json
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from alexnet_jax.data.images import RESIZES
from alexnet_jax.model import ablations
from alexnet_jax.model.nets import NETS
from alexnet_jax.model.preprocessing import Preprocessing
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights.layouts import MAX_CLASSES, checked, shapes

FORMAT, VERSION = 'alexnet_jax', 1
_MAX_SIDE = 4096
_ARRAYS = ('mean', 'scale', 'color_basis')
_SWITCHES = ('random_crop', 'random_flip', 'upright')


def write(pretrained: Pretrained) -> bytes:
  preprocessing = pretrained.preprocessing
  metadata = {
    'format': FORMAT,
    'version': VERSION,
    'source': pretrained.source,
    'net': pretrained.net,
    'ablations': list(pretrained.ablations),
    'classes': list(pretrained.classes),
    'image_size': pretrained.image_size,
    'resize': pretrained.resize,
    'crop': preprocessing.crop,
    'resize_to': preprocessing.resize_to,
    **{name: getattr(preprocessing, name) for name in _SWITCHES},
  }
  arrays = flatten_dict(pretrained.variables, sep='/')
  arrays |= {f'preprocessing/{name}': getattr(preprocessing, name) for name in _ARRAYS}
  arrays = {name: np.asarray(array, np.float32) for name, array in sorted(arrays.items())}
  text = json.dumps(metadata).encode()
  buffer = io.BytesIO()
  np.savez(buffer, metadata=np.frombuffer(text, np.uint8), **arrays)
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
    if metadata['format'] != FORMAT:
      raise ValueError(f'its format is {metadata["format"]!r:.40}, not {FORMAT!r}')
    if metadata['version'] != VERSION:
      raise ValueError(f'it is of version {metadata["version"]!r:.40}; this is version {VERSION}')
    return _assemble(metadata, arrays)
  except (AttributeError, KeyError, RecursionError, TypeError) as error:
    reason = f'{type(error).__name__}: {error}'
    raise ValueError(f'its metadata is damaged ({reason:.80})') from None


def _assemble(metadata: dict, arrays: dict[str, np.ndarray]) -> Pretrained:
  sizes = {name: metadata[name] for name in ('image_size', 'crop', 'resize_to')}
  classes, net, edits = metadata['classes'], metadata['net'], metadata['ablations']
  valid = (
    type(net) is type(metadata['source']) is str
    and type(classes) is type(edits) is list
    and 2 <= len(classes) <= MAX_CLASSES
    and all(type(name) is str for name in classes)
    and all(type(size) is int and 0 <= size <= _MAX_SIDE for size in sizes.values())
    and 0 < sizes['crop'] <= (sizes['resize_to'] or sizes['image_size'])
    and metadata['resize'] in RESIZES
    and all(type(metadata[name]) is bool for name in _SWITCHES)
  )
  if not valid:
    raise ValueError('its metadata is damaged: a field has a value that is not allowed')
  if net not in NETS:
    raise ValueError(f'it is of net {net!r:.40}, which this version does not have')
  crop = sizes['crop']
  table = ablations.edited(NETS[net](len(classes)), edits, (crop, crop, 3))
  wanted = shapes(table, crop)
  whole_mean = arrays['preprocessing/mean'].shape != (3,)
  wanted |= {
    'preprocessing/mean': (crop, crop, 3) if whole_mean else (3,),
    'preprocessing/scale': (3,),
    'preprocessing/color_basis': (3, 3),
  }
  arrays = checked(arrays, wanted, net)
  inputs: dict[str, Any] = {name: arrays.pop(f'preprocessing/{name}') for name in _ARRAYS}
  variables = {'params': {}, 'batch_stats': {}} | unflatten_dict(arrays, sep='/')
  return Pretrained(
    source=metadata['source'],
    net=net,
    variables=variables,
    classes=tuple(classes),
    image_size=sizes['image_size'],
    resize=metadata['resize'],
    preprocessing=Preprocessing(
      crop=crop,
      resize_to=sizes['resize_to'],
      **inputs,
      **{name: metadata[name] for name in _SWITCHES},
    ),
    ablations=tuple(edits),
  )
