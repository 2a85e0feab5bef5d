"""The page on what a net makes of photos: one HTML file, with pictures and numbers inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.explorer import drawing, pictures
from alexnet_jax.explorer.observation import CELLS, Observation, occluder, views_of
from alexnet_jax.model import layers, nets
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.results import html_page
from alexnet_jax.results.figures import drawable

MAPS = 8  # strongest ones shown of a layer
_TOP = 5  # classes, as in the paper's Figure 4
_KERNEL_COLUMNS = 16  # as in its Figure 3
_THUMBNAIL = 96  # pixels

# What a step is, in the words of the page.
_STEPS = {
  layers.Relu: 'ReLU: what is negative becomes 0',
  layers.Tanh: 'tanh: all values between −1 and 1',
  layers.MaxPool: 'max pooling: the largest value of each window',
  layers.AvgPool: 'average pooling: the mean of each window',
  layers.ResponseNorm: 'local response normalization: strong neighboring channels dim each other',
  layers.SpatialNorm: 'spatial response normalization: strong neighboring places dim each other',
  layers.BatchNorm: 'batch normalization: mean and spread as in training',
}


def page(
  weights: Pretrained, observations: Sequence[Observation], training: int, command: str
) -> str:
  """The page as HTML.

  Args:
    weights: the net.
    observations: of the photos, one at least.
    training: among how many training images the neighbors were looked for.
    command: how the page was asked for, shown on it.
  """
  crop = weights.preprocessing.crop
  boxes = drawing.draw(weights.table, (crop, crop, 3))
  return html_page.render(
    'explorer/explore.html.j2',
    title=f'A look inside {nets.title(weights)}',
    source=drawable(weights.source),
    command=drawable(command),
    crop=crop,
    side=weights.preprocessing.resize_to or weights.image_size,
    views=_view_places(weights),
    boxes=boxes,
    drawing=(drawing.WIDTH, drawing.height_of(boxes)),
    parameters=f'{layers.count_parameters(weights.table, (crop, crop, 3)):,}',
    macs=f'{layers.count_macs(weights.table, (crop, crop, 3)):,}',
    kernels=_kernels(weights),
    cells=CELLS,
    training=training,
    last_hidden=_last_hidden(weights),
    photos=[_photo(weights, each) for each in observations],
  )


def _photo(weights: Pretrained, seen: Observation) -> dict[str, Any]:
  """The texts and pictures of one photo."""
  prediction, table = seen.prediction, weights.table
  names = {table[-1].name: weights.classes}
  return {
    'name': drawable(Path(prediction.name).name),
    'true_class': drawable(prediction.true_class),
    'pixels': pictures.photo(seen.pixels),
    'bars': _bars(weights, prediction.labels, prediction.probabilities, prediction.true_label),
    'mean_bars': _mean_bars(weights, seen),
    'views': [_bars(weights, *_best(view, 1), prediction.true_label)[0] for view in seen.views],
    'occlusion': _occlusion(weights, seen),
    'layers': [_layer(row.name, seen.outputs[row.name], names.get(row.name)) for row in table],
    'steps': _steps(table, seen.outputs),
    'neighbors': [
      {'distance': f'{distance:.4g}', 'class': drawable(name), 'pixels': _thumbnail(image)}
      for distance, image, name in seen.neighbors
    ],
  }


def _thumbnail(image: np.ndarray) -> str:
  return pictures.photo(image, _THUMBNAIL)


def _best(probabilities: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  labels = np.argsort(-probabilities, kind='stable')[:count]
  return labels, probabilities[labels]


def _bars(weights: Pretrained, labels, probabilities, true_label: int | None) -> list[dict]:
  return [
    {
      'class': drawable(weights.classes[label]),
      'share': f'{share:.2%}',
      'true': label == true_label,
    }
    for label, share in zip(labels, probabilities, strict=True)
  ]


def _mean_bars(weights: Pretrained, seen: Observation) -> list[dict]:
  best = _best(seen.views.mean(axis=0), _TOP)
  return _bars(weights, *best, seen.prediction.true_label)


def _view_places(weights: Pretrained) -> list[dict[str, Any]]:
  words = {0: ('top', 'left'), 0.5: ('middle', 'center'), 1: ('bottom', 'right')}
  return [
    {
      'row': row,
      'column': column,
      'mirrored': mirrored,
      'name': ('center' if row == column == 0.5 else f'{words[row][0]} {words[column][1]}')
      + ', mirrored' * mirrored,
    }
    for row, column, mirrored in views_of(weights)
  ]


def _occlusion(weights: Pretrained, seen: Observation) -> dict[str, Any]:
  """The occlusion map: cells, each with its square, its color and what it says."""
  crop, name = weights.preprocessing.crop, drawable(seen.prediction.classes[0])
  whole = float(seen.prediction.probabilities[0])
  changes = seen.occlusion - whole
  largest = float(np.abs(changes).max()) or 1.0
  cells = []
  for row in range(CELLS):
    for column in range(CELLS):
      top, left, bottom, right = occluder(row, column, crop)
      change = float(changes[row, column])
      points = _signed(f'{100 * change:+.2f}')
      cells.append(
        {
          'square': f'{left} {top} {right - left} {bottom - top}',
          'falls': change < 0,
          'opacity': f'{0.85 * abs(change) / largest:.2f}',
          'text': f'{seen.occlusion[row, column]:.2%} {name}, {points} points',
        }
      )
  lowest = int(seen.occlusion.argmin())
  return {'class': name, 'whole': f'{whole:.2%}', 'cells': cells, 'lowest': lowest}


def strongest(outputs: np.ndarray, count: int) -> np.ndarray:
  """The channels of outputs (H, W, C) or (C,) with the largest values, largest first."""
  largest = outputs.reshape(-1, outputs.shape[-1]).max(axis=0)
  return np.argsort(-largest, kind='stable')[:count]


def _layer(name: str, outputs: np.ndarray, channel_names: Sequence[str] | None) -> dict[str, Any]:
  """A layer's output: its strongest maps, or all its values where it has no maps."""
  channels = strongest(outputs, MAPS)
  is_maps = outputs.ndim == 3
  names = channel_names or range(outputs.shape[-1])
  return {
    'name': name,
    'shape': '×'.join(map(str, outputs.shape)),
    'maps': is_maps,
    'strip': pictures.strip(outputs[..., channels]) if is_maps else pictures.vector(outputs),
    'channels': [(drawable(str(names[c])), _number(outputs[..., c].max())) for c in channels],
    'active': f'{(outputs > 0).mean():.0%}',
  }


def _steps(table: layers.Table, outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
  """Rows without learned weights, each on the strongest of its maps: before and after."""
  steps = []
  for above, row in zip(('input', *(row.name for row in table)), table, strict=False):
    before, after = outputs[above], outputs[row.name]
    if type(row) in _STEPS and after.ndim == 3:
      channel = int(strongest(after, 1)[0])
      pair = [outputs[..., channel] for outputs in (before, after)]
      steps.append(
        {
          'name': row.name,
          'above': above,
          'text': _STEPS[type(row)],
          'channel': channel,
          'sides': [
            {
              'strip': pictures.strip(side[..., None]),
              'low': _number(side.min()),
              'high': _number(side.max()),
              'size': f'{side.shape[0]}×{side.shape[1]}',
            }
            for side in pair
          ],
        }
      )
  return steps


def _kernels(weights: Pretrained) -> dict[str, Any] | None:
  """The sheet of the first layer's kernels, if that is a convolution of colors."""
  first = weights.table[0]
  if not isinstance(first, layers.Conv) or isinstance(first, layers.Local):
    return None
  kernel = weights.variables['params'][first.name]['kernel']
  return {
    'layer': first.name,
    'count': first.features,
    'size': f'{first.kernel}×{first.kernel}',
    'sheet': pictures.kernels(np.asarray(kernel), _KERNEL_COLUMNS),
  }


def _last_hidden(weights: Pretrained) -> str:
  return [row for row in weights.table[:-1] if not isinstance(row, layers.Dropout)][-1].name


def _number(value: float) -> str:
  return _signed(f'{value:.4g}')


def _signed(number: str) -> str:
  return number.replace('-', '−')
