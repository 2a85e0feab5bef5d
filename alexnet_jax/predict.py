"""Predictions, features and nearest neighbors of images, by a trained net.

  python -m alexnet_jax.predict --workdir=runs/digits a.png photos/ --figure=guesses.png
  python -m alexnet_jax.predict --weights=alexnet.pth --views=10 --json=guesses.json photos/
  find . -name '*.jpg' | python -m alexnet_jax.predict --workdir=runs/digits -
  python -m alexnet_jax.predict --workdir=runs/digits --features=fc4 --npz=features.npz photos/
  python -m alexnet_jax.predict --workdir=runs/digits --neighbors=6 --gallery=photos/ a.png

Arguments are files, folders (of all images at any depth), or - for a list of files on standard
input.  They are decoded and resized as in training.  Where an image's folder has the name of a
class, that is taken for its true class.  Images that cannot be read are listed and skipped: the
exit code is 2 only if none can be read.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.files import json_text, one_line_error, write_json, write_npz
from alexnet_jax.runtime.jax_setup import set_up_jax

if TYPE_CHECKING:  # it imports NumPy, which help and typos do not need
  from alexnet_jax.inference.image_predictions import ImagePrediction
  from alexnet_jax.inference.predictor import Predictor

_T = TypeVar('_T')
_SHOWN = 8  # images in a figure, as in the paper's

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'File of weights, in place of a run.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which saved state of the run.'
)
_CLASSES = flags.DEFINE_string(
  'classes', None, 'Text file with the name of a class per line, in place of those of the weights.'
)
_VIEWS = flags.DEFINE_enum('views', '1', ['1', '9', '10'], 'Views averaged per image.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes named per image.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'Images at a time.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'File for all results; - for standard output.')
_FIGURE = flags.DEFINE_string('figure', None, 'PNG of eight images with their results.')
_FEATURES = flags.DEFINE_string(
  'features', None, 'Layer whose outputs to save, such as fc7, or to find --neighbors by.'
)
_NPZ = flags.DEFINE_string('npz', None, 'File for --features; features-LAYER.npz if not given.')
_NEIGHBORS = flags.DEFINE_integer(
  'neighbors', None, 'How many nearest images of --gallery to find for each.', lower_bound=1
)
_GALLERY = flags.DEFINE_string('gallery', None, 'Folder of images to look for neighbors in.')


def main(words: list[str]) -> None:
  path = _checked_path(words)
  from alexnet_jax.data.listing import find_images

  if '-' in words:
    words = [word for word in words if word != '-'] + sys.stdin.read().splitlines()
  files = find_images([word for word in words if word])
  if not files:
    raise UserError('no images: standard input has no line')
  gallery = find_images([_GALLERY.value]) if _GALLERY.value else []
  set_up_jax()
  from alexnet_jax.inference.predictor import Predictor
  from alexnet_jax.weights.load import load

  weights = load(path, classes=_CLASSES.value, checkpoint=_CHECKPOINT.value)
  predictor = Predictor(weights, views=int(_VIEWS.value), batch_size=_BATCH_SIZE.value)
  title = f'{path.name} ({weights.net})'
  if gallery:
    _show_neighbors(predictor, files, gallery, title)
  else:
    _show_predictions(predictor, files, title)


def _checked_path(words: list[str]) -> Path:
  """The path of the net; UserError if flags do not fit each other."""
  if bool(_WORKDIR.value) == bool(_WEIGHTS.value):
    raise UserError('give either --workdir=RUN or --weights=FILE')
  if not words:
    raise UserError('no images: give files or folders, or - for a list on standard input')
  if bool(_NEIGHBORS.value) != bool(_GALLERY.value):
    raise UserError('--neighbors=K and --gallery=FOLDER need each other')
  if _NPZ.value and not _FEATURES.value:
    raise UserError(f'--npz={_NPZ.value}: give --features=LAYER too')
  if _NPZ.value and _GALLERY.value:
    raise UserError(f'--npz={_NPZ.value}: leave out --neighbors and --gallery to save features')
  return Path(_WORKDIR.value or _WEIGHTS.value or '')


def _predict(
  predictor: 'Predictor', files: Sequence[Path], title: str, features: str | None
) -> list['ImagePrediction']:
  """Predictions of all files, with a progress bar; prints which ones cannot be read."""
  from alexnet_jax.terminal import Console

  progress = Console(quiet=len(files) <= 2 * _BATCH_SIZE.value)
  with progress.count(title, len(files)) as advance:
    found = list(predictor.stream(files, top=_TOP.value, features=features, advance=advance))
  for each in found:
    if each.error:
      print(f'{each.name} cannot be read: {each.error}', file=sys.stderr)
  if all(each.error for each in found):
    raise UserError(f'{title}: none of {len(found):,} can be read')
  return found


def _show_predictions(predictor: 'Predictor', files: Sequence[Path], title: str) -> None:
  import numpy as np

  from alexnet_jax.inference import figure4, image_predictions

  found = _predict(predictor, files, 'images', _FEATURES.value)
  classes = len(predictor.weights.classes)
  values: dict[str, Any] = {**image_predictions.known_error_rates(found, classes)}
  values['images'] = image_predictions.predictions_json(found)
  _output(predictor, image_predictions.predictions_text(found, classes), values)
  readable = [each for each in found if not each.error]
  if _FEATURES.value:
    names, features = zip(*((each.name, each.features) for each in readable), strict=True)
    path = _NPZ.value or f'features-{_FEATURES.value}.npz'
    _write('npz', path, lambda: write_npz(path, names=np.array(names), features=np.stack(features)))
  if figure := _FIGURE.value:
    shown = [(_pixels(predictor, each), each) for each in _spread(readable)]
    _write('figure', figure, lambda: figure4.draw_predictions(shown, figure, title))


def _show_neighbors(
  predictor: 'Predictor', files: Sequence[Path], gallery: Sequence[Path], title: str
) -> None:
  from alexnet_jax.inference import figure4, neighbors

  layer = _FEATURES.value or predictor.last_hidden
  queries = _predict(predictor, files, 'images', layer)
  candidates = _predict(predictor, gallery, f'images of {_GALLERY.value}', layer)
  looked_at = len(queries) + len(candidates)
  queries, candidates = ([x for x in each if not x.error] for each in (queries, candidates))
  found = neighbors.search(queries, candidates, _NEIGHBORS.value or 0)
  text = neighbors.neighbors_text(queries, found)
  if broken := looked_at - len(queries) - len(candidates):
    text += f'\n\n{looked_at:,} images, of which {broken:,} cannot be read'
  _output(predictor, text, {'layer': layer, 'images': neighbors.neighbors_json(queries, found)})
  if figure := _FIGURE.value:

    def tile(each: 'ImagePrediction', note: str = ''):
      caption = each.true_class or Path(each.name).stem
      return _pixels(predictor, each), f'{caption} {note}'.strip()

    rows = [
      [tile(query), *(tile(each, f'{distance:.1f}') for distance, each in nearest)]
      for query, nearest in _spread(list(zip(queries, found, strict=True)))
    ]
    title = f'{title}: nearest in {layer}'
    _write('figure', figure, lambda: figure4.draw_neighbors(rows, figure, title))


def _spread(items: Sequence[_T]) -> list[_T]:
  """At most `_SHOWN` of them, evenly spaced: those next to each other are often of one class."""
  count = min(len(items), _SHOWN)
  return [items[i * len(items) // count] for i in range(count)]


def _pixels(predictor: 'Predictor', prediction: 'ImagePrediction'):
  from alexnet_jax.data.images import read_image

  weights = predictor.weights
  return read_image(
    Path(prediction.name), weights.image_size, weights.resize, weights.preprocessing.upright
  )


def _output(predictor: 'Predictor', text: str, values: dict[str, Any]) -> None:
  """Prints the text, and writes the values where --json says."""
  values = {'weights': predictor.weights.source, 'views': int(_VIEWS.value), **values}
  if _JSON.value == '-':
    print(json_text(values, indent=2))
    return
  print(text)
  if path := _JSON.value:
    _write('json', path, lambda: write_json(path, values))


def _write(flag: str, path: str, write: Callable[[], None]) -> None:
  with one_line_error(f'--{flag}={path}'):
    write()
  print(f'{path} is written', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
