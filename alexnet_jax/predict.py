"""Predictions, features and nearest neighbors of pictures, by a trained net.

  python -m alexnet_jax.predict --workdir=runs/digits a.png photos/ --figure=guesses.png
  python -m alexnet_jax.predict --weights=alexnet.pth --views=10 --json=guesses.json photos/
  find . -name '*.jpg' | python -m alexnet_jax.predict --workdir=runs/digits -
  python -m alexnet_jax.predict --workdir=runs/digits --features=fc4 --npz=features.npz photos/
  python -m alexnet_jax.predict --workdir=runs/digits --neighbors=6 --gallery=photos/ a.png

Words are files, folders (of all pictures at any depth), or - for a list of files on standard input.
They are decoded and resized as in training.  Where a picture's folder is named as a class, that is
taken for its true class.  A picture that cannot be read is named and passed over: the exit code is
2 only if none can be read.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.jax_setup import set_up_jax

if TYPE_CHECKING:  # it imports NumPy, which help and typos do not need
  from alexnet_jax.inference.image_predictions import ImagePrediction

_SHOWN = 8  # pictures in a figure, as in the paper's

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'File of weights, in place of a run.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which saved state of the run.'
)
_CLASSES = flags.DEFINE_string(
  'classes', None, "Text file with a class a line, in place of the weights' own names."
)
_VIEWS = flags.DEFINE_enum('views', '1', ['1', '9', '10'], 'Views averaged per picture.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes named per picture.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'Pictures at a time.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'File for all that is found; - for standard output.')
_FIGURE = flags.DEFINE_string('figure', None, 'PNG of the first pictures with what is found.')
_FEATURES = flags.DEFINE_string(
  'features', None, 'Layer whose outputs are wanted, such as fc7; for --neighbors the last hidden.'
)
_NPZ = flags.DEFINE_string('npz', None, 'File for names and features; features-LAYER.npz.')
_NEIGHBORS = flags.DEFINE_integer(
  'neighbors', None, 'How many pictures of the gallery to find for each.', lower_bound=1
)
_GALLERY = flags.DEFINE_string('gallery', None, 'Folder of pictures to look for neighbors in.')


def main(words: list[str]) -> None:
  _check_flags(words)
  from alexnet_jax.data.listing import find_images

  files = find_images(_with_listed(words))
  gallery = find_images([_GALLERY.value]) if _GALLERY.value else []
  set_up_jax()
  from alexnet_jax.inference.predictor import Predictor
  from alexnet_jax.weights.load import load

  path = Path(_WORKDIR.value or _WEIGHTS.value)
  if _WORKDIR.value and not path.is_dir():
    raise UserError(f'--workdir={path} is not a folder: give that of a run')
  weights = load(path, classes=_CLASSES.value, checkpoint=_CHECKPOINT.value)
  predictor = Predictor(weights, views=int(_VIEWS.value), batch_size=_BATCH_SIZE.value)
  if gallery:
    _show_neighbors(predictor, files, gallery)
  else:
    _show_predictions(predictor, files)


def _check_flags(words: list[str]) -> None:
  """Raises UserError for what can be told to be wrong without looking at anything."""
  if bool(_WORKDIR.value) == bool(_WEIGHTS.value):
    raise UserError('give either --workdir=RUN or --weights=FILE')
  if not words:
    raise UserError('no pictures: give files or folders, or - for a list on standard input')
  if bool(_NEIGHBORS.value) != bool(_GALLERY.value):
    raise UserError('--neighbors=K and --gallery=FOLDER need each other')
  if _NPZ.value and not _FEATURES.value:
    raise UserError(f'--npz={_NPZ.value}: which layer? give --features=LAYER too')
  if _NPZ.value and _GALLERY.value:
    raise UserError(f'--npz={_NPZ.value}: leave out --neighbors and --gallery to save features')


def _with_listed(words: list[str]) -> list[str]:
  """The words, `-` replaced by the lines of standard input."""
  listed = []
  if '-' in words:
    listed = [line for line in sys.stdin.read().splitlines() if line]
    if not listed and words == ['-']:
      raise UserError('no pictures: standard input has no line')
  return [word for word in words if word != '-'] + listed


def _look(predictor, files, title: str, features: str | None) -> list['ImagePrediction']:
  """Predictions of all files, with a progress bar; what cannot be read is named."""
  from alexnet_jax.terminal import Console

  progress = Console(quiet=len(files) <= 2 * _BATCH_SIZE.value)
  with progress.count(title, len(files)) as advance:
    found = list(predictor.stream(files, top=_TOP.value, features=features, advance=advance))
  for prediction in found:
    if prediction.error:
      print(f'{prediction.name} cannot be read: {prediction.error}', file=sys.stderr)
  if all(prediction.error for prediction in found):
    raise UserError(f'{title}: none of {len(found):,} can be read')
  return found


def _show_predictions(predictor, files) -> None:
  from alexnet_jax.inference import image_predictions

  found = _look(predictor, files, 'pictures', _FEATURES.value)
  classes = len(predictor.weights.classes)
  _say(image_predictions.predictions_text(found, classes))
  _write_json(
    predictor,
    image_predictions.error_rates(found, classes)
    | {'pictures': image_predictions.predictions_json(found)},
  )
  readable = [each for each in found if not each.error]
  if _FEATURES.value:
    _write_features(readable)
  if _FIGURE.value:
    from alexnet_jax.inference import figure4

    shown = [readable[row] for row in _spread(len(readable))]
    pairs = [(_square(predictor, each), each) for each in shown]
    title = _title(predictor)
    _write('figure', _FIGURE.value, lambda path: figure4.predictions(pairs, path, title))


def _show_neighbors(predictor, files, gallery) -> None:
  from alexnet_jax.inference import neighbors

  layer = _FEATURES.value or predictor.last_hidden
  queries = _look(predictor, files, 'pictures', layer)
  candidates = _look(predictor, gallery, f'pictures of {_GALLERY.value}', layer)
  looked_at = len(queries) + len(candidates)
  queries, candidates = ([x for x in each if not x.error] for each in (queries, candidates))
  found = neighbors.search(queries, candidates, _NEIGHBORS.value)
  _say(neighbors.neighbors_text(queries, found))
  if broken := looked_at - len(queries) - len(candidates):
    _say(f'\n{looked_at:,} pictures, of which {broken:,} cannot be read')
  _write_json(predictor, {'layer': layer, 'pictures': neighbors.neighbors_json(queries, found)})
  if _FIGURE.value:
    from alexnet_jax.inference import figure4

    def tile(each, note=''):
      caption = each.true_class or Path(each.name).stem
      return _square(predictor, each), f'{caption} {note}'.strip()

    by_name = {each.name: each for each in candidates}
    rows = _spread(len(queries))
    asked = [tile(queries[row]) for row in rows]
    nearest = [[tile(by_name[x.name], f'{x.distance:.1f}') for x in found[row]] for row in rows]
    title = f'{_title(predictor)}: nearest in {layer}'
    _write('figure', _FIGURE.value, lambda path: figure4.neighbors(asked, nearest, path, title))


def _say(text: str) -> None:
  if _JSON.value != '-':
    print(text)


def _title(predictor) -> str:
  return Path(_WORKDIR.value or _WEIGHTS.value).name + f' ({predictor.weights.net})'


def _spread(count: int) -> list[int]:
  """At most `_SHOWN` of so many, evenly: neighbors in a list often show the same class."""
  return [i * count // min(count, _SHOWN) for i in range(min(count, _SHOWN))]


def _square(predictor, prediction: 'ImagePrediction'):
  from alexnet_jax.data import images

  weights = predictor.weights
  return images.read_image(
    Path(prediction.name), weights.image_size, weights.resize, weights.preprocessing.upright
  )


def _write_json(predictor, found: dict) -> None:
  from alexnet_jax import files

  value = {'weights': predictor.weights.source, 'views': int(_VIEWS.value), **found}
  if _JSON.value == '-':
    print(files.json_text(value, indent=2))
  elif _JSON.value:
    _write('json', _JSON.value, lambda path: files.write_json(path, value))


def _write_features(found: list['ImagePrediction']) -> None:
  import numpy as np

  from alexnet_jax import files

  buffer = io.BytesIO()
  features = np.stack([each.features for each in found])
  np.savez(buffer, names=np.array([each.name for each in found]), features=features)
  path = _NPZ.value or f'features-{_FEATURES.value}.npz'
  _write('npz', path, lambda path: files.write(path, buffer.getvalue()))


def _write(flag: str, path: str, write: Callable[[str], None]) -> None:
  try:
    write(path)
  except OSError as error:
    raise UserError(f'--{flag}={path} cannot be written: {error.strerror}') from error
  print(f'{path} is written', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
