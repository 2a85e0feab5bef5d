"""The page on what a net makes of photos: one HTML file, with images and numbers inside."""

import re
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
_FEW = 20  # values of a layer, up to which all are listed
_THUMBNAIL = 160  # pixels

# What a step is, in the words of the page.
_STEPS = {
  layers.Relu: 'what is negative becomes 0',
  layers.Tanh: 'all values come between −1 and 1',
  layers.MaxPool: 'the largest value of each window',
  layers.AvgPool: 'the mean of each window',
  layers.ResponseNorm: 'each value is divided by a sum over its neighboring channels',
  layers.SpatialNorm: 'each value is divided by a sum over its neighboring places',
  layers.BatchNorm: 'mean and spread as in training',
}


def render(
  weights: Pretrained,
  observations: Sequence[Observation],
  training: int,
  command: str,
  tested: str = '',
) -> str:
  """The page as HTML.

  Args:
    weights: the net.
    observations: of the photos, at least one.
    training: among how many training images the neighbors were looked for.
    command: how the page was asked for, shown on it.
    tested: the net's error in words, if it is known.
  """
  crop = weights.preprocessing.crop
  photos = [_photo(weights, each) for each in observations]
  boxes = drawing.draw(weights.table, (crop, crop, 3))
  return html_page.render(
    'explorer/explore.html.j2',
    title=f'A look inside {nets.title(weights)}',
    source=_without_folders(weights.source),
    command=_without_folders(command),
    classes=len(weights.classes),
    tested=tested,
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
    hidden=photos[0]['layers'][-2],
    photos=photos,
  )


def _photo(weights: Pretrained, seen: Observation) -> dict[str, Any]:
  """The texts and images of one photo."""
  prediction, table = seen.prediction, weights.table
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
      _layer(row, seen.outputs[row.name], weights.classes if row is table[-1] else None)
      for row in table
      if not isinstance(row, layers.Dropout)
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
  first, guesses = seen.prediction.labels[0], seen.covered.argmax(axis=2)
  shares = seen.covered[..., first]
  changes = shares - whole
  largest = float(np.abs(changes).max()) or 1.0
  hardly = float(np.ptp(changes)) < 0.01
  cells = []
  for (row, column), change in np.ndenumerate(changes):
    guess = guesses[row, column]
    top, left, bottom, right = occluder(row, column, weights.preprocessing.crop)
    cells.append(
      {
        'square': f'{left} {top} {right - left} {bottom - top}',
        'falls': change < 0,
        'opacity': '0' if hardly else f'{0.85 * abs(change) / largest:.2f}',
        'share': f'{shares[row, column]:.2%}',
        'points': _signed(f'{100 * change:+.2f}'),
        'then': '' if guess == first else f': the net then says {drawable(weights.classes[guess])}',
      }
    )
  return {
    'class': drawable(seen.prediction.classes[0]),
    'whole': f'{whole:.2%}',
    'hardly': hardly,
    'cells': cells,
    'lowest': cells[int(changes.argmin())],
    'highest': cells[int(changes.argmax())],
  }


def strongest(outputs: np.ndarray, count: int) -> np.ndarray:
  """The channels of outputs (H, W, C) or (C,) with the largest values, largest first."""
  largest = outputs.reshape(-1, outputs.shape[-1]).max(axis=0)
  return np.argsort(-largest, kind='stable')[:count]


def _layer(
  row: layers.Row, outputs: np.ndarray, channel_names: Sequence[str] | None
) -> dict[str, Any]:
  """A layer's output: its strongest maps, or all its values where it has no maps."""
  few = outputs.size <= _FEW
  channels = strongest(outputs, _FEW if few else MAPS)
  if is_maps := outputs.ndim == 3:
    image = inline_images.map_strip(outputs[..., channels])
  else:
    image = inline_images.value_square(outputs)
  names = channel_names or range(outputs.shape[-1])
  return {
    'name': row.name,
    'weighted': isinstance(row, layers.Conv | layers.Dense),
    'shape': '×'.join(map(str, outputs.shape)),
    'maps': is_maps,
    'few': few,
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
      peaks = [_number(side.max()) for _, side in pair]
      text = _STEPS[type(row)]
      if peaks[0] != peaks[1]:
        word = 'falls' if pair[1][1].max() < pair[0][1].max() else 'rises'
        text += f': here the peak {word} from {peaks[0]} to {peaks[1]}'
      brightest = max(float(np.abs(side).max()) for _, side in pair)
      steps.append(
        {
          'name': row.name,
          'text': text,
          'channel': channel,
          'sides': [
            {
              'image': inline_images.map_strip(side[..., None], brightest),
              'shape': f'{layer}, {side.shape[0]}×{side.shape[1]}',
              'ends': f'{_number(side.min())} to {peak}',
            }
            for (layer, side), peak in zip(pair, peaks, strict=True)
          ],
        }
      )
  return steps


def _kernels(weights: Pretrained) -> dict[str, Any] | None:
  """Pictures of the first layer's kernels, if that is a convolution of colors."""
  first = weights.table[0]
  if not isinstance(first, layers.Conv) or isinstance(first, layers.Local):
    return None
  kernel = np.asarray(weights.variables['params'][first.name]['kernel'])
  return {
    'layer': first.name,
    'size': f'{first.kernel}×{first.kernel}',
    'images': [
      inline_images.encode(kernel_image(kernel[..., k : k + 1]), lossless=True)
      for k in range(first.features)
    ],
  }


def _without_folders(text: str) -> str:
  """The text with the last part alone of absolute paths."""
  return drawable(re.sub(r'(?<![^\s=\'"])/[^\s=\'"]*/', '', text))


def _number(value: float) -> str:
  return _signed(f'{value:.4g}')


def _signed(number: str) -> str:
  return number.replace('-', '−')
