"""Why does the loss stay at ln(classes)?  Two checks of a config before, or instead of, a run.

  python -m alexnet_jax.diagnose --config=configs/imagenet.py:paper
  python -m alexnet_jax.diagnose --config=configs/imagenet.py --images=FOLDER --overfit_steps=0
  python -m alexnet_jax.diagnose --config=configs/digits.py --json=digits.json

First, what every layer puts out at initialization, down to the signal that is left of an image at
the logits.  Then training on one batch alone, which a net and a recipe that can learn anything
learn by heart: verdict `learned`, `plateau`, `unfinished` or `diverged`.  Both use the config's own
images, or photo-like noise where its TFDS data is not prepared.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import compilation_cache, cpu, platforms
from alexnet_jax.terminal import aligned

if TYPE_CHECKING:  # they import jax, which help and typos do not need
  from alexnet_jax.data.store import Store
  from alexnet_jax.train.diagnosis import Activations, Step

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images to look at.', lower_bound=2)
_OVERFIT_STEPS = flags.DEFINE_integer(
  'overfit_steps', 100, 'Updates on the one batch, at most; 0 leaves that out.', lower_bound=0
)
_IMAGES = flags.DEFINE_string('images', None, "Folder of photos to use in place of the config's.")
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

# Mean color of the training images of ILSVRC-2012 (cuda-convnet2 make-data/input_meta).
_MEAN_COLOR_2012 = (127.305, 119.715, 104.913)
# Logit signal of #145 on ImageNet photos; the paper's literal initialization leaves 0.011, those
# of Caffe's two nets 0.005 and 0.008.
_SIGNAL_2012 = 0.164
_WEAK_SIGNAL, _STRONG_SIGNAL = 0.03, 1.0


def main() -> None:
  config, name = cli.read_config()
  cpu.prepare_process()
  compilation_cache.prepare_process()
  platforms.prepare_process()
  from alexnet_jax import files
  from alexnet_jax.model import nets
  from alexnet_jax.runtime.environment import environment
  from alexnet_jax.train import diagnosis
  from alexnet_jax.train.devices import Devices
  from alexnet_jax.weights.start import weights_of

  store, images, labels, what = choose_batch(config, _BATCH_SIZE.value, _IMAGES.value)
  classes, net = len(store.classes), nets.title(config.model)
  print(f'{name}: net {net}, {classes:,} classes\n{what}\n\nat initialization, without dropout:\n')
  weights = weights_of(config)
  experiment = diagnosis.one_batch_experiment(config, store, len(images), weights)
  state = experiment.initial_state()
  layers = diagnosis.activations(experiment, state, images)
  print(f'{layer_table(layers)}\n\n{interpretation(layers[-1].signal, classes)}', flush=True)
  figures = {
    'config': name,
    'net': net,
    'classes': classes,
    'images': what,
    'layers': [dataclasses.asdict(layer) for layer in layers],
    'logit_signal': layers[-1].signal,
  }
  if _OVERFIT_STEPS.value:
    rate = experiment.recipe.rates.learning_rate
    print(
      f'\nthe same {len(images)} images at every step, at rate {rate:g}'
      f' (config: {config.optimizer.learning_rate:g}, batches of {config.batch_size}):\n'
    )
    course = _printed(diagnosis.overfit(experiment, state, images, labels, _OVERFIT_STEPS.value))
    blind = diagnosis.label_entropy(labels)
    verdict, sentence = diagnosis.verdict(course, classes, blind)
    print(f'\n{verdict}: {sentence}')
    figures['overfit'] = {
      'learning_rate': rate,
      'label_entropy': blind,
      'verdict': verdict,
      'course': [dataclasses.asdict(step) for step in course],
    }
  if _JSON.value:
    figures |= {'command': cli.command_line(), **environment(Devices())}
    try:
      files.write_json(_JSON.value, figures)
    except OSError as error:
      raise UserError(f'--json={_JSON.value} cannot be written: {error.strerror}') from error


def _printed(steps: Iterator['Step']) -> list['Step']:
  """All of `steps`, having printed those after 0, 1, 2, 5, 10, 20, 50, ... updates and the last."""
  print('    step        loss  top-1 error')
  course, shown = [], None
  for step in steps:
    course.append(step)
    if str(step.step).rstrip('0') in ('', '1', '2', '5'):
      shown = step
      _print(step)
  if course[-1] is not shown:
    _print(course[-1])
  return course


def _print(step: 'Step') -> None:
  print(f'{step.step:8,}  {step.loss:10.4g}  {step.top1_error:11.4f}', flush=True)


def choose_batch(
  config, size: int, folder: str | None
) -> tuple['Store', np.ndarray, np.ndarray, str]:
  """The images to look at.

  Args:
    config: validated.
    size: images wanted; fewer if there are not so many.
    folder: a folder of photos to take instead of the config's images, or None.

  Returns:
    A store for the statistics that preprocessing needs, images uint8 (n, S, S, 3), labels
    int32 (n,), and what they are in words.

  Raises:
    UserError: fewer than two images, or an unreadable one.
  """
  from alexnet_jax.data import preparation

  own = config.data.source != 'tfds' or preparation.store_path(config.data).exists()
  if own:
    store = preparation.prepare_store(config.data)
    images, labels = store.train.images[:size], store.train.labels[:size]
    what = f'{len(images)} training images of {store.path or config.data.source}'
  else:
    store = photo_like_store(config.data.num_classes or 10, size, config.data.image_size)
    images, labels = store.train.images, store.train.labels
    what = (
      f'{size} photo-like noise images: no prepared {config.data.name} at'
      f' {preparation.store_path(config.data)}'
    )
  if folder:
    images = read_photos(Path(folder), size, config.data.image_size, config.data.resize)
    labels = _spread_labels(len(images), len(store.classes))
    what = f'{len(images)} photos of {folder}, labels made up'
  if len(images) < 2:
    raise UserError(f'{what}: at least 2 are needed to tell them apart')
  return store, np.asarray(images), np.asarray(labels), what


def read_photos(folder: Path, count: int, image_size: int, resize: str) -> np.ndarray:
  """At most `count` images of a folder and its subfolders, as uint8 (n, S, S, 3)."""
  from alexnet_jax.data import images
  from alexnet_jax.data.listing import list_images

  if not folder.is_dir():
    raise UserError(f'--images={folder}: there is no such folder')
  paths = [folder / file for file in list_images(folder).files]
  if not paths:
    raise UserError(f'--images={folder}: holds no {", ".join(images.EXTENSIONS)}')
  # Evenly over the names, which often begin with the class.
  chosen = [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
  photos = []
  for path in chosen:
    try:
      photos.append(images.square(path.read_bytes(), image_size, resize))
    except (OSError, images.UnreadableImage) as error:
      raise UserError(f'{path} cannot be read ({error}): remove it from --images') from error
  return np.stack(photos)


def photo_like_store(classes: int, count: int, image_size: int) -> 'Store':
  """A store of noise with the colors of ImageNet and the spectrum of photos.

  Args:
    classes: number of classes, over which the labels are spread.
    count: number of images.
    image_size: S, their side in pixels.
  """
  from alexnet_jax.data.store import Split, Store
  from alexnet_jax.model.preprocessing import COLOR_EIGENVECTORS_2012, COLOR_STDEVS_2012

  stdevs, eigenvectors = np.array(COLOR_STDEVS_2012), np.array(COLOR_EIGENVECTORS_2012)
  # Amplitudes fall as 1 / frequency (Field, J. Opt. Soc. Am. A 4, 1987).
  frequencies = np.fft.fftfreq(image_size) * image_size
  amplitude = 1 / np.maximum(np.hypot(frequencies[:, None], frequencies), 1)[..., None]
  amplitude /= np.sqrt(np.mean(amplitude**2))
  white = np.random.Generator(np.random.Philox(key=2012)).standard_normal(
    (count, image_size, image_size, 3)
  )
  components = np.fft.ifft2(np.fft.fft2(white, axes=(1, 2)) * amplitude, axes=(1, 2)).real
  pixels = (components * stdevs) @ eigenvectors.T + _MEAN_COLOR_2012
  images = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  mean_image = np.full((image_size, image_size, 3), _MEAN_COLOR_2012, np.float32)
  train = Split(images, _spread_labels(count, classes))
  return Store(
    None,
    tuple(map(str, range(classes))),
    train,
    train.first(0),
    mean_image,
    stdevs,
    eigenvectors,
    {},
  )


def _spread_labels(count: int, classes: int) -> np.ndarray:
  return (np.arange(count) % classes).astype(np.int32)


def layer_table(layers: Sequence['Activations']) -> str:
  """One line a layer, aligned."""
  lines = [('layer', 'kind', 'output', 'mean', 'std', 'active', 'signal')]
  lines += [
    (
      layer.name,
      layer.kind,
      'x'.join(map(str, layer.shape)),
      f'{layer.mean:.4g}',
      f'{layer.std:.4g}',
      '' if layer.active is None else f'{layer.active:.2f}',
      f'{layer.signal:.4g}',
    )
    for layer in layers
  ]
  return '\n'.join(aligned(lines, left=(0, 1)))


def interpretation(signal: float, classes: int) -> str:
  """What the logit signal at initialization means for the start of training."""
  guessing = f'the loss of guessing, ln({classes:,}) = {math.log(classes):.3f}'
  signal_here = f'logit signal {signal:.3g} ({_SIGNAL_2012} in the net of 2012 on ImageNet photos)'
  if signal < _WEAK_SIGNAL:
    return (
      f'{signal_here}: the answers hardly depend on the image, so training starts at'
      f' {guessing}, and may stay there for long.  See at which layer the signal falls, and'
      ' look at its initial weights (in conv3-5 0.03, not 0.01), at biases of 1 beside small'
      ' weights, and at the input (the nets of 2012 expect 0-255 minus the mean: a std near'
      ' 60).'
    )
  if signal > _STRONG_SIGNAL:
    return (
      f'{signal_here}: the answers differ wildly between images, so training starts above'
      f' {guessing}, and the first steps may be too large: lower the rate, or warm up.'
    )
  return (
    f'{signal_here}: images tell on the answers from the start.  If training stays at'
    f' {guessing}, look at labels, rate and order of the data, not at the initialization.'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
