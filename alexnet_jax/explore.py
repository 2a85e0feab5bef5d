"""Writes a page on what a trained net makes of photos: one HTML file that needs no other.

  python -m alexnet_jax.explore --workdir=runs/digits a.png b.png
  python -m alexnet_jax.explore --weights=alexnet.pth --out=look.html photos/

It shows the guesses, the views and what each says, which parts of a photo matter, the net's layers
and its first kernels, the strongest feature maps of every layer, what a step does to a map, and,
with --workdir, the nearest training images where the data are still there.
"""

import sys
import time
from pathlib import Path

from absl import flags

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.jax_setup import set_up_jax

_MOST = 24  # photos on a page, each of which takes about half a megabyte

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'File of weights, in place of a run.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which saved state of the run.'
)
_CLASSES = flags.DEFINE_string(
  'classes', None, "Text file with a class a line, in place of the weights' own names."
)
_OUT = flags.DEFINE_string('out', 'explore.html', 'The page.')
_TRAINING_IMAGES = flags.DEFINE_integer(
  'training_images',
  300,
  'How many training images of the run to look for neighbors in, a random subset; 0 for none.',
  lower_bound=0,
)


def main(words: list[str]) -> None:
  began = time.monotonic()
  if bool(_WORKDIR.value) == bool(_WEIGHTS.value):
    raise UserError('give either --workdir=RUN or --weights=FILE')
  if not words:
    raise UserError('no photos: give files or folders')
  from alexnet_jax.data.listing import find_images

  photos = find_images(words)
  if len(photos) > _MOST:
    raise UserError(f'{len(photos):,} photos: a page takes at most {_MOST}; name some of them')
  set_up_jax()
  from alexnet_jax.explorer.explorer_page import render
  from alexnet_jax.explorer.observation import observe
  from alexnet_jax.explorer.training_images import find_training_images
  from alexnet_jax.terminal import Console
  from alexnet_jax.weights.load import load

  path = Path(_WORKDIR.value or _WEIGHTS.value or '')
  weights = load(path, classes=_CLASSES.value, checkpoint=_CHECKPOINT.value)
  training = None
  if _WORKDIR.value:
    training = find_training_images(weights, path, _TRAINING_IMAGES.value)
  with Console().count('photos', len(photos)) as advance:
    found, unreadable = observe(weights, photos, training, advance)
  for each in unreadable:
    print(f'{each.name} cannot be read: {each.error}', file=sys.stderr)
  if not found:
    raise UserError(f'none of {len(photos)} photos can be read')
  tested = _tested(Path(_WORKDIR.value)) if _WORKDIR.value else ''
  count = len(training.images) if training else 0
  text = render(weights, found, count, cli.command_line(), tested)
  with files.one_line_error(f'--out={_OUT.value}'):
    files.write(_OUT.value, text)
  size, seconds = Path(_OUT.value).stat().st_size / 1e6, time.monotonic() - began
  print(f'{_OUT.value}  {len(found)} photo{"s" * (len(found) > 1)}, {size:.1f} MB, {seconds:.0f} s')


def _tested(workdir: Path) -> str:
  """The error of a finished run over the most views, in words; '' if there is none."""
  from alexnet_jax.run.folder import read_results
  from alexnet_jax.run.predictions import VIEW_NAMES, results_prefix

  results = read_results(workdir) or {}
  for views in sorted(VIEW_NAMES, reverse=True):
    prefix = 'eval' if views == results.get('views') else results_prefix(views)
    if (error := results.get(f'{prefix}/top1_error')) is not None:
      return f'it errs on {error:.1%} of the validation images ({VIEW_NAMES[views]})'
  return ''


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
