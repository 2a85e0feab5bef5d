"""The page on what a net makes of photos: one HTML file, with images and numbers inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.explorer import drawing, inline_images
from alexnet_jax.explorer.observation import CELLS, Observation, occluder, views_of
from alexnet_jax.model import layers, nets
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.results import html_page
from alexnet_jax.results.figures import drawable, kernel_image

MAPS = 8  # strongest ones shown of a layer
_TOP = 5  # classes, as in the paper's Figure 4
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


def render(
  weights: Pretrained, observations: Sequence[Observation], training: int, command: str
) -> str:
  """The page as HTML.

  Args:
    weights: the net.
    observations: of the photos, at least one.
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
  """The texts and images of one photo."""
  prediction, table = seen.prediction, weights.table
  channel_names = {table[-1].name: weights.classes}
  truth = prediction.true_label

  def bars(probabilities: np.ndarray, count: int) -> list[dict[str, Any]]:
    best = np.argsort(-probabilities, kind='stable')[:count]
    return [_bar(weights.classes[label], probabilities[label], label == truth) for label in best]

  shares = zip(prediction.labels, prediction.probabilities, strict=True)
  return {
    'name': drawable(Path(prediction.name).name),
    'true_class': drawable(prediction.true_class),
    'pixels': inline_images.encode(seen.pixels),
    'bars': [_bar(weights.classes[label], share, label == truth) for label, share in shares],
    'mean_bars': bars(seen.views.mean(axis=0), _TOP),
    'views': [bars(view, 1)[0] for view in seen.views],
    'occlusion': _occlusion(weights, seen),
    'layers': [
      _layer(row.name, seen.outputs[row.name], channel_names.get(row.name)) for row in table
    ],
    'steps': _steps(table, seen.outputs),
    'neighbors': [
      {
        'distance': f'{distance:.4g}',
        'class': drawable(name),
        'pixels': inline_images.encode(image, _THUMBNAIL),
      }
      for distance, image, name in seen.neighbors
    ],
  }


def _bar(name: str, share: float, is_true: bool) -> dict[str, Any]:
  return {'class': drawable(name), 'share': f'{share:.2%}', 'true': is_true}


def _view_places(weights: Pretrained) -> list[dict[str, Any]]:
  crop = weights.preprocessing.crop
  border = (weights.preprocessing.resize_to or weights.image_size) - crop
  words = {0: ('top', 'left'), 0.5: ('middle', 'center'), 1: ('bottom', 'right')}
  views = []
  for row, column, mirrored in views_of(weights):
    name = 'center' if row == column == 0.5 else f'{words[row][0]} {words[column][1]}'
    views.append(
      {
        'name': name + ', mirrored' * mirrored,
        'x': int(column * border),
        'y': int(row * border),
        'position': f'{100 * column:g}% {100 * row:g}%',
        'mirrored': mirrored,
      }
    )
  return views


def _occlusion(weights: Pretrained, seen: Observation) -> dict[str, Any]:
  """The occlusion map: cells, each with its square, its color and what it says."""
  whole = float(seen.prediction.probabilities[0])
  changes = seen.occlusion - whole
  largest = float(np.abs(changes).max()) or 1.0
  cells = []
  for (row, column), change in np.ndenumerate(changes):
    top, left, bottom, right = occluder(row, column, weights.preprocessing.crop)
    cells.append(
      {
        'square': f'{left} {top} {right - left} {bottom - top}',
        'falls': change < 0,
        'opacity': f'{0.85 * abs(change) / largest:.2f}',
        'share': f'{seen.occlusion[row, column]:.2%}',
        'points': _signed(f'{100 * change:+.2f}'),
      }
    )
  return {
    'class': drawable(seen.prediction.classes[0]),
    'whole': f'{whole:.2%}',
    'cells': cells,
    'lowest': cells[int(changes.argmin())],
    'highest': cells[int(changes.argmax())],
  }


def strongest(outputs: np.ndarray, count: int) -> np.ndarray:
  """The channels of outputs (H, W, C) or (C,) with the largest values, largest first."""
  largest = outputs.reshape(-1, outputs.shape[-1]).max(axis=0)
  return np.argsort(-largest, kind='stable')[:count]


def _layer(name: str, outputs: np.ndarray, channel_names: Sequence[str] | None) -> dict[str, Any]:
  """A layer's output: its strongest maps, or all its values where it has no maps."""
  channels = strongest(outputs, MAPS)
  if is_maps := outputs.ndim == 3:
    image = inline_images.map_strip(outputs[..., channels])
  else:
    image = inline_images.value_square(outputs)
  names = channel_names or range(outputs.shape[-1])
  return {
    'name': name,
    'shape': '×'.join(map(str, outputs.shape)),
    'maps': is_maps,
    'image': image,
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
      pair = (above, before[..., channel]), (row.name, after[..., channel])
      steps.append(
        {
          'name': row.name,
          'text': _STEPS[type(row)],
          'channel': channel,
          'sides': [
            {
              'image': inline_images.map_strip(side[..., None]),
              'layer': layer,
              'low': _number(side.min()),
              'high': _number(side.max()),
              'size': f'{side.shape[0]}×{side.shape[1]}',
            }
            for layer, side in pair
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
    'sheet': inline_images.encode(kernel_image(np.asarray(kernel)), lossless=True),
  }


def _last_hidden(weights: Pretrained) -> str:
  return [row for row in weights.table[:-1] if not isinstance(row, layers.Dropout)][-1].name


def _number(value: float) -> str:
  return _signed(f'{value:.4g}')


def _signed(number: str) -> str:
  return number.replace('-', '−')
