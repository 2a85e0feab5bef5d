"""Converts weights.

  python -m alexnet_jax.convert alexnet-owt-7be5be79.pth alexnet.npz
  python -m alexnet_jax.convert runs/imagenet alexnet.stablehlo
  python -m alexnet_jax.convert cifar10 cifar10.stablehlo

SRC, by its content: torchvision's alexnet (.pth, .safetensors), BVLC's alexnet and CaffeNet
(.caffemodel, .npy), either as .onnx, our .npz, the folder of a run, or the name of a net in the
package.  DST, by its suffix:

  .npz           all of it: weights, net, classes, preprocessing
  .pth           the state dict of torchvision's alexnet, for torch.load; net owt only
  .safetensors   the same for safetensors
  .stablehlo     a program for jax.export: float32 views (b, crop, crop, 3), 0-255 RGB, to logits
  .onnx          a program for ONNX: float32 (N, 3, crop, crop) after preprocessing, to logits and
                 probabilities; with --preprocessing of uint8 (N, size, size, 3), 0-255 RGB
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import si

if TYPE_CHECKING:
  from alexnet_jax.model.pretrained import Pretrained

_NET = flags.DEFINE_enum(
  'net', None, ['caffe', 'caffenet'], 'Which one, where a Caffe file does not say it.'
)
_CLASSES = flags.DEFINE_string('classes', None, 'Text file of class names, one a line.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'last'], 'Which saved state, if SRC is a run.'
)
_PREPROCESSING = flags.DEFINE_bool(
  'preprocessing', False, 'Puts crop, mean and scale into a .onnx, for uint8 images.'
)
_SOURCE = flags.DEFINE_string(
  'source', None, 'What an .npz is to say of itself: where it comes from, its error.'
)


_EVALUATED = ('.npz', '.pth', '.safetensors')  # files that are read again
_FULL_SIZE = 224  # pixels of a view in configs/imagenet.py


def main(words: list[str]) -> None:
  if len(words) != 2:
    given = f'got {" ".join(words)}' if words else 'got neither'
    raise UserError(f'give SRC and DST, two names of files, such as alexnet.pth a.npz; {given}')
  source, target = words
  import jax

  from alexnet_jax.weights import load, save

  path = Path(target)
  save.check_suffix(path, _PREPROCESSING.value)
  if _SOURCE.value and path.suffix != '.npz':
    raise UserError(f'--source={_SOURCE.value}: {path} cannot hold that, only an .npz can')
  jax.config.update('jax_platforms', 'cpu')  # another program may be using the accelerator
  weights = load.load(source, net=_NET.value, classes=_CLASSES.value, checkpoint=_CHECKPOINT.value)
  weights = dataclasses.replace(weights, source=_SOURCE.value or weights.source)
  size = save.save(weights, path, _PREPROCESSING.value)
  print(f'wrote {path}, {si(size, "B")}')
  print(_described(weights, source, target if path.suffix in _EVALUATED else source))


def _described(weights: 'Pretrained', source: str, evaluated: str) -> str:
  """What a net is, its classes, its preprocessing, and the command that evaluates it."""
  preprocessing, classes = weights.preprocessing, weights.classes
  size, resize, mean, scale = weights.image_size, weights.resize, 'the mean image', ''
  if preprocessing.mean.ndim == 1:
    mean = ' '.join(f'{value:.4g}' for value in preprocessing.mean)
  if (preprocessing.scale != 1).any():
    scale = ', times ' + ' '.join(f'{value:.3g}' for value in preprocessing.scale)
  config, usual = 'imagenet' if len(classes) == 1000 else 'folder:IMAGES', 256
  if size < _FULL_SIZE:
    config, usual = 'cifar10 --config.data.source=folder --config.data.dir=IMAGES', 32
    config += f' --config.data.num_classes={len(classes)}'
  config += f' --config.data.image_size={size}' * (size != usual)
  config += f' --config.data.resize={resize}' * (resize != 'crop')
  command = f'--weights={evaluated} --config={config} --views=1'
  if Path(source).is_dir():
    command = f'--workdir={source}'
  return (
    f'{weights.source}: net {weights.net}, {len(classes):,} classes, {classes[0]} to {classes[-1]};'
    f' images {resize} to {size}, views of {preprocessing.crop}, RGB of 0-255 minus {mean}{scale};'
    f' evaluate it with python -m alexnet_jax.evaluate {command}'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
