"""The networks as tables, one function a net, each with where its numbers come from.

"CHM" is github.com/computerhistory/AlexNet-Source-Code, Krizhevsky's own code and configurations
of 2012; "cuda-convnet" and "cuda-convnet2" are his released libraries.  The two GPUs of 2012 are
two towers: grouped convolutions, channels 0..C/2-1 being tower a.

An ablation is an edit of rows: every function returns a plain tuple of rows from `layers.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.model import layers
from alexnet_jax.model.ablations import edited
from alexnet_jax.model.layers import (
  AvgPool,
  BatchNorm,
  Conv,
  Dense,
  Dropout,
  Local,
  MaxPool,
  Relu,
  ResponseNorm,
  SpatialNorm,
  without,
)


def krizhevsky2012(classes: int = 1000) -> layers.Table:
  """The net that gave the published numbers: CHM layers-145.cfg and layer-params-145.cfg.

  Unlike the paper's text: no ReLU before the first LRN (it stands after the pool), a spatial
  response norm before pool2, LRN inside each tower with alpha 1e-4/5, std 0.03 in conv3-5.
  60,965,224 parameters at 1,000 classes.
  """
  return (
    Conv('conv1', 96, 11, stride=4, ceil=True, init=0.01, bias=0.0),
    ResponseNorm('norm1', groups=2),
    MaxPool('pool1'),
    Relu('relu1'),
    Conv('conv2', 256, 5, padding=2, groups=2, init=0.01, bias=1.0),
    Relu('relu2'),
    ResponseNorm('norm2', groups=2),
    SpatialNorm('spatial_norm2'),
    MaxPool('pool2'),
    Conv('conv3', 384, 3, padding=1, init=0.03, bias=0.0),
    Relu('relu3'),
    Conv('conv4', 384, 3, padding=1, groups=2, init=0.03, bias=1.0),
    Relu('relu4'),
    Conv('conv5', 256, 3, padding=1, groups=2, init=0.03, bias=1.0),
    MaxPool('pool5'),
    Relu('relu5'),
    *_dense_layers(classes, bias=1.0),
  )


def _dense_layers(
  classes: int, *, bias: float, hidden_init: float = 0.01, inverted: bool = False
) -> layers.Table:
  """fc6, fc7 and the classifier; dropout on the outputs of fc6 and fc7 (paper section 4.2)."""
  return (
    Dense('fc6', 4096, init=hidden_init, bias=bias),
    Relu('relu6'),
    Dropout('drop6', inverted=inverted),
    Dense('fc7', 4096, init=hidden_init, bias=bias),
    Relu('relu7'),
    Dropout('drop7', inverted=inverted),
    Dense('fc8', classes, init=0.01, bias=0.0),
  )


def paper(classes: int = 1000) -> layers.Table:
  """The paper's text taken at its word (sections 3.1-3.5, 5).

  ReLU after every layer, LRN after ReLU over adjacent maps of the whole layer, alpha = 1e-4 on
  the plain sum, N(0, 0.01^2) everywhere, biases 1 in conv2, conv4, conv5, fc6, fc7.  Geometry of
  the 2012 code: literal floor arithmetic on 224 gives 54x54 maps and another net (49.4M).
  """
  norm: dict[str, Any] = {'alpha': 1e-4, 'k': 2.0}
  return (
    Conv('conv1', 96, 11, stride=4, ceil=True),
    Relu('relu1'),
    ResponseNorm('norm1', **norm),
    MaxPool('pool1'),
    Conv('conv2', 256, 5, padding=2, groups=2, bias=1.0),
    Relu('relu2'),
    ResponseNorm('norm2', **norm),
    MaxPool('pool2'),
    *_upper_convolutions(bias=1.0),
    *_dense_layers(classes, bias=1.0),
  )


def _upper_convolutions(*, bias: float) -> layers.Table:
  """conv3 to pool5, with a ReLU directly after every convolution."""
  return (
    Conv('conv3', 384, 3, padding=1),
    Relu('relu3'),
    Conv('conv4', 384, 3, padding=1, groups=2, bias=bias),
    Relu('relu4'),
    Conv('conv5', 256, 3, padding=1, groups=2, bias=bias),
    Relu('relu5'),
    MaxPool('pool5'),
  )


def caffe(classes: int = 1000) -> layers.Table:
  """BVLC's bvlc_alexnet (models/bvlc_alexnet/train_val.prototxt); for 227-pixel crops.

  k = 1, bias 0.1 ("initialization to 1 gave flat loss", its readme), fc std 0.005, inverted
  dropout, LRN across the seam of the towers.
  """
  return (
    Conv('conv1', 96, 11, stride=4),
    Relu('relu1'),
    ResponseNorm('norm1', k=1.0),
    MaxPool('pool1'),
    Conv('conv2', 256, 5, padding=2, groups=2, bias=0.1),
    Relu('relu2'),
    ResponseNorm('norm2', k=1.0),
    MaxPool('pool2'),
    *_upper_convolutions(bias=0.1),
    *_dense_layers(classes, bias=0.1, hidden_init=0.005, inverted=True),
  )


def caffenet(classes: int = 1000) -> layers.Table:
  """BVLC's bvlc_reference_caffenet: `caffe`, but pools before it normalizes, and biases 1."""
  conv1, relu1, norm1, pool1, conv2, relu2, norm2, pool2, *upper = caffe(classes)
  rows = (conv1, relu1, pool1, norm1, conv2, relu2, pool2, norm2, *upper)
  return tuple(
    replace(row, bias=1.0) if isinstance(row, (Conv, Dense)) and row.bias else row for row in rows
  )


def caffe_onnx(classes: int = 1000) -> layers.Table:
  """The ONNX model zoo's AlexNet: `caffe` for 224-pixel crops, with maps of 54, 26, 12 and 6.

  The first two pools round down; onnx/models bvlcalexnet, with BVLC's weights.
  """
  return _two_pools_down(caffe(classes))


def _two_pools_down(table: layers.Table) -> layers.Table:
  """The last pool is padded below and beside there, which is rounding up."""
  return tuple(
    replace(row, ceil=False) if isinstance(row, MaxPool) and row.name != 'pool5' else row
    for row in table
  )


def caffenet_onnx(classes: int = 1000) -> layers.Table:
  """The ONNX model zoo's CaffeNet: `caffenet` as `caffe_onnx` is `caffe`."""
  return _two_pools_down(caffenet(classes))


def owt(classes: int = 1000) -> layers.Table:
  """torchvision's `alexnet`, after "One weird trick" (arXiv 1404.5997): one tower, no LRN.

  Dropout stands before fc6 and fc7; PyTorch's default initialization.  61,100,840 parameters.
  """
  init: layers.Init = 'torch'
  return (
    Conv('conv1', 64, 11, stride=4, padding=2, init=init),
    Relu('relu1'),
    MaxPool('pool1'),
    Conv('conv2', 192, 5, padding=2, init=init),
    Relu('relu2'),
    MaxPool('pool2'),
    Conv('conv3', 384, 3, padding=1, init=init),
    Relu('relu3'),
    Conv('conv4', 256, 3, padding=1, init=init),
    Relu('relu4'),
    Conv('conv5', 256, 3, padding=1, init=init),
    Relu('relu5'),
    MaxPool('pool5'),
    Dropout('drop5', inverted=True),
    Dense('fc6', 4096, init=init),
    Relu('relu6'),
    Dropout('drop6', inverted=True),
    Dense('fc7', 4096, init=init),
    Relu('relu7'),
    Dense('fc8', classes, init=init),
  )


def one_tower(classes: int = 1000) -> layers.Table:
  """The one-GPU net of paper section 3.2 (CHM layer-params-145-half.cfg): 59,798,312 parameters.

  #145 with half the kernels of conv1-4, each of which sees all maps; the rest is not halved.
  """
  return edited(krizhevsky2012(classes), ['one_tower'], (224, 224, 3))


def conv6(classes: int = 1000) -> layers.Table:
  """CNN* of the paper (section 6, Table 2): #145 with a sixth convolution on pool5 (CHM #146)."""
  rows = list(krizhevsky2012(classes))
  after = [row.name for row in rows].index('relu5') + 1
  rows[after:after] = [Conv('conv6', 256, 3, padding=1, init=0.03, bias=1.0), Relu('relu_conv6')]
  return tuple(rows)


def bn(classes: int = 1000) -> layers.Table:
  """AlexNet-BN (NVIDIA/caffe models/alexnet_bn/train_val.prototxt); for 227-pixel crops.

  `caffe` with conv-BN-ReLU in place of LRN.  Unlike theirs every convolution keeps its bias, which
  batch normalization makes idle.
  """
  rows: list[layers.Row] = []
  for row in without(caffe(classes), ResponseNorm):
    if isinstance(row, Conv):
      norm = BatchNorm(row.name.replace('conv', 'bn'), epsilon=1e-4)
      rows += [replace(row, bias=0.0), norm]
    else:
      rows.append(row)
  return tuple(rows)


def bn_after_pool(classes: int = 1000) -> layers.Table:
  """The AlexNet-BN that the LARS authors train in large batches (train_val2.prototxt there).

  `caffe` with batch norms without scale and bias in place of LRN, on the input of every
  convolution but the first; biases of the convolutions and of fc8 start at 0.01.
  """
  rows: list[layers.Row] = []
  for row in without(caffe(classes), ResponseNorm):
    if isinstance(row, Conv) and rows:
      rows.append(BatchNorm(row.name.replace('conv', 'bn'), epsilon=1e-4, affine=False))
    if isinstance(row, Conv) or (isinstance(row, Dense) and row.name == 'fc8'):
      row = replace(row, bias=0.01)
    rows.append(row)
  return tuple(rows)


def cifar_18pct(classes: int = 10) -> layers.Table:
  """cuda-convnet example-layers/layers-18pct.cfg: 89,578 parameters, documented error 18 %."""
  norm: dict[str, Any] = {'size': 3, 'alpha': 5e-5 / 9}  # its scale, divided by size squared
  return (
    Conv('conv1', 32, 5, padding=2, init=0.0001),
    MaxPool('pool1'),
    Relu('relu1'),
    SpatialNorm('spatial_norm1', **norm),
    Conv('conv2', 32, 5, padding=2, init=0.01),
    Relu('relu2'),
    AvgPool('pool2'),
    SpatialNorm('spatial_norm2', **norm),
    Conv('conv3', 64, 5, padding=2, init=0.01),
    Relu('relu3'),
    AvgPool('pool3'),
    Dense('fc10', classes, init=0.01),
  )


def cifar_19pct(classes: int = 10) -> layers.Table:
  """cuda-convnet layers-19pct.cfg: 18pct without response norms, documented error 19 %."""
  return without(cifar_18pct(classes), SpatialNorm)


def cifar_80sec(classes: int = 10) -> layers.Table:
  """cuda-convnet example-layers/layers-80sec.cfg: 145,578 parameters, documented error 26 %.

  19pct with a hidden dense layer.  Caffe's cifar10_quick is without the last ReLU.
  """
  return (
    *cifar_19pct(classes)[:-1],
    Dense('fc64', 64, init=0.1),
    Relu('relu64'),
    Dense('fc10', classes, init=0.1),
  )


def cifar_11pct(classes: int = 10) -> layers.Table:
  """cuda-convnet2 layers-cifar10-11pct.cfg: 2,112,970 parameters on 24x24 crops, 11 %."""
  norm: dict[str, Any] = {'size': 9, 'alpha': 0.001 / 9, 'k': 1.0}
  return (
    Conv('conv1', 64, 5, padding=2, init=0.0001),
    Relu('relu1'),
    MaxPool('pool1'),
    ResponseNorm('norm1', **norm),
    Conv('conv2', 64, 5, padding=2, init=0.01),
    Relu('relu2'),
    ResponseNorm('norm2', **norm),
    MaxPool('pool2'),
    Local('local3', 64, 3, padding=1, init=0.04),
    Relu('relu3'),
    Local('local4', 32, 3, padding=1, init=0.04),
    Relu('relu4'),
    Dense('fc10', classes, init=0.01),
  )


def cifar_13pct(classes: int = 10) -> layers.Table:
  """cuda-convnet layers-conv-local-13pct.cfg on 24x24 crops: 1,116,490 parameters, 13 %.

  11pct without response norms, and with 32 maps in local3.
  """
  rows = without(cifar_11pct(classes), ResponseNorm)
  return tuple(replace(row, features=32) if isinstance(row, Local) else row for row in rows)


def cifar_bn(classes: int = 10) -> layers.Table:
  """The 14-layer batch-norm net of a write-up on CIFAR-10, which gives 76.75 % accuracy.

  Widths and order as published; dropout rates and initialization were not, so they are chosen
  here: keep 0.9, 0.8, 0.7, 0.6 down the dense layers, He initialization, zero biases.
  """
  convolutions = [
    row
    for i, features in enumerate((64, 128, 256, 512), start=1)
    for row in (
      Conv(f'conv{i}', features, 3, padding=1, init='he'),
      Relu(f'relu{i}'),
      MaxPool(f'pool{i}', window=2, stride=2),
      BatchNorm(f'bn{i}'),
    )
  ]
  dense = [
    row
    for i, (features, keep) in enumerate(((128, 0.9), (256, 0.8), (512, 0.7), (1024, 0.6)), start=5)
    for row in (
      Dense(f'fc{i}', features, init='he'),
      Relu(f'relu{i}'),
      Dropout(f'drop{i}', keep=keep, inverted=True),
      BatchNorm(f'bn{i}'),
    )
  ]
  return (*convolutions, *dense, Dense('fc9', classes, init='he'))


def digits(classes: int = 10) -> layers.Table:
  """A small AlexNet for 28x28 crops: overlapping max pools, LRN, dropout; learns in a minute."""
  return (
    Conv('conv1', 32, 5, padding=2, init=0.03),
    Relu('relu1'),
    ResponseNorm('norm1'),
    MaxPool('pool1'),
    Conv('conv2', 64, 5, padding=2, init='he'),
    Relu('relu2'),
    ResponseNorm('norm2'),
    MaxPool('pool2'),
    Conv('conv3', 64, 3, padding=1, init='he'),
    Relu('relu3'),
    MaxPool('pool3'),
    Dense('fc4', 128, init='he'),
    Relu('relu4'),
    Dropout('drop4'),
    Dense('fc5', classes, init='he'),
  )


NETS: dict[str, Callable[[int], layers.Table]] = {
  net.__name__: net
  for net in (
    krizhevsky2012,
    paper,
    caffe,
    caffenet,
    caffe_onnx,
    caffenet_onnx,
    owt,
    one_tower,
    conv6,
    bn,
    bn_after_pool,
    cifar_80sec,
    cifar_19pct,
    cifar_18pct,
    cifar_13pct,
    cifar_11pct,
    cifar_bn,
    digits,
  )
}

WIDTHS = (1.0, 0.5, 0.25)  # of the features of a net in full


def make_table(
  net: str, classes: int, crop: int, width: float = 1.0, ablations: Sequence[str] = ()
) -> layers.Table:
  """The rows of a net: its table, then made narrower, then edited.

  Args:
    net: a key of `NETS`.
    classes: number of classes.
    crop: side of the net's input.
    width: one of `WIDTHS`; see `layers.narrow`.
    ablations: names of those that edit rows, see `ablations.EDITS`.

  Raises:
    ValueError: the width or an ablation does not fit the net.
  """
  table = NETS[net](classes)
  if width != 1:
    table = layers.narrow(table, round(1 / width))
  return edited(table, ablations, (crop, crop, 3))


def table_of(config, classes: int) -> layers.Table:
  """The net of a config; `classes` and errors as of `make_table`."""
  model = config.model
  return make_table(model.net, classes, config.input.crop, model.width, model.ablations)


def has_batch_norm(config) -> bool:
  """Whether a config's net normalizes over batches."""
  return any(isinstance(row, BatchNorm) for row in table_of(config, 2))


def check_net(config) -> None:
  """Checks what a config asks of its net.

  Raises:
    UserError: the net cannot be built on such views, has no layer that a field names, or cannot
      accumulate gradients.
  """
  try:
    table = table_of(config, config.data.num_classes or 2)
    layers.count_macs(table, (config.input.crop, config.input.crop, 3))
  except ValueError as error:
    raise UserError(
      f'config.model.net={title(config.model)} with input.crop={config.input.crop}: {error}'
    ) from None
  known = [row.name for row in table if isinstance(row, (Conv, Dense))]
  parameters = [f'{name}/{parameter}' for name in known for parameter in ('kernel', 'bias')]
  fields = {'layer_weight_decay': known, 'layer_lr_factors': known + parameters}
  for field, allowed in fields.items():
    for name in config.optimizer[field]:
      if name not in allowed:
        raise UserError(
          f'config.optimizer.{field}: no layer {name!r} with a kernel in this net;'
          f' it has {", ".join(known)}'
        )
  if config.grad_accum_steps > 1 and has_batch_norm(config) and not config.model.ghost_batch:
    raise UserError(
      f'config.grad_accum_steps={config.grad_accum_steps}: batch normalization would not see the'
      ' global batch; set model.ghost_batch to the images of a micro-batch on a device, or'
      ' grad_accum_steps to 1'
    )


def title(model) -> str:
  """A net's name with width and ablations: "bn, width 1/2", "krizhevsky2012 (no_lrn, tanh)".

  Args:
    model: `config.model`, or a `Pretrained`.
  """
  width = '' if model.width == 1 else f', width {Fraction(model.width)}'
  return model.net + width + (f' ({", ".join(model.ablations)})' if model.ablations else '')
