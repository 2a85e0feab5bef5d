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

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import si

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
  preprocessing = weights.preprocessing
  print(
    f'{weights.source}: net {weights.net}, {len(weights.classes):,} classes, pictures'
    f' {weights.resize} to {weights.image_size}, views of {preprocessing.crop}'
  )
  print(f'wrote {path}, {si(size, "B")}')


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
