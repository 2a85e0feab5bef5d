"""The peers of the step benchmark: the same net and update in PyTorch, eager or compiled.

The net shares nothing with ours but the rows of its table, so that equal gradients prove something.
Where PyTorch offers several ways, the fastest is used.
"""

import collections
from collections.abc import Callable

import torch
from torch.nn import functional

from alexnet_jax.benchmarks.step_task import LossAndGrads, Task, without_dropout
from alexnet_jax.benchmarks.worker import Unavailable
from alexnet_jax.benchmarks.workload import Workload
from alexnet_jax.model import layers


class TorchStep(Workload):
  """Forward, backward and update of a batch of float views.

  It has less to do than our step: its views come cropped, flipped and with the mean subtracted, and
  nothing watches for losses that are not finite.

  Attributes:
    memory_format: of images and kernels.
    compiled: whether by torch.compile.
  """

  memory_format = torch.contiguous_format
  compiled = False

  def __init__(self, task: Task):
    """Builds the net and its optimizer.

    On a GPU (not measured yet) cuDNN's algorithms are chosen by timing, and products are TF32, as
    ours are there by default, or bfloat16 by autocast where the config says so.

    Raises:
      Unavailable: the task has something that is not implemented here.
    """
    on_gpu = task.platform == 'gpu' and torch.cuda.is_available()
    if task.platform != 'cpu' and not on_gpu:
      raise Unavailable(
        f'this PyTorch computes on CPUs, and our step on a {task.platform}: set JAX_PLATFORMS=cpu'
        ' to compare'
      )
    if task.optimizer != 'momentum' or (task.compute_dtype != 'float32' and not on_gpu):
      raise Unavailable(
        'it has the 2012 update and, on a CPU, float32 only, not optimizer.name='
        f'{task.optimizer} with model.compute_dtype={task.compute_dtype}'
      )
    self._device = torch.device('cuda' if on_gpu else 'cpu')
    if on_gpu:
      torch.set_float32_matmul_precision('high')
      torch.backends.cudnn.benchmark = True
    self._task = task
    views = torch.tensor(task.views, device=self._device).permute(0, 3, 1, 2)
    self._views = views.contiguous(memory_format=self.memory_format)
    self._labels = torch.tensor(task.labels, dtype=torch.long, device=self._device)
    self._loss_of = self._make_loss(task.table)
    _, parameters = self._parameters_of(task.weights)
    self._parameters = {
      layer: {name: tensor.detach().requires_grad_() for name, tensor in leaves.items()}
      for layer, leaves in parameters.items()
    }
    self._optimizer = make_sgd(self._parameters, task)
    self._loss = torch.tensor(torch.nan)

  def _make_loss(self, table: layers.Table) -> Callable[..., torch.Tensor]:
    """The function (parameters, views, labels) -> loss of a net."""
    forward = make_forward(table, self._task.view_shape)
    rounded = self._task.compute_dtype == 'bfloat16'

    def loss_of(parameters, views, labels):
      with torch.autocast(self._device.type, torch.bfloat16, enabled=rounded):
        logits = forward(parameters, views)
      return functional.cross_entropy(logits.float(), labels)

    return torch.compile(loss_of) if self.compiled else loss_of

  def _parameters_of(self, weights: dict) -> tuple[dict, dict]:
    """Weights as tensors in our layout, and converted from these, differentiably, to PyTorch's."""
    ours = {
      layer: {
        name: torch.tensor(array, device=self._device, requires_grad=True)
        for name, array in leaves.items()
      }
      for layer, leaves in weights.items()
    }
    theirs = {
      row.name: _parameters(row, inputs, self.memory_format, **ours[row.name])
      for row, inputs, _ in layers.walk(self._task.table, self._task.view_shape)
      if row.name in ours
    }
    return ours, theirs

  def loss_and_grads(self, weights: dict) -> LossAndGrads:
    """Loss and gradients at `weights`, without dropout."""
    ours, theirs = self._parameters_of(weights)
    try:
      loss = self._make_loss(without_dropout(self._task.table))(theirs, self._views, self._labels)
      loss.backward()
    except RuntimeError as error:
      if not self.compiled:
        raise
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise Unavailable(f'torch.compile failed ({reason})') from None
    gradients = {
      layer: {name: tensor.grad.cpu().numpy() for name, tensor in leaves.items()}
      for layer, leaves in ours.items()
    }
    return LossAndGrads(loss.item(), gradients)

  def run(self, batches: int) -> int:
    for _ in range(batches):
      self._optimizer.zero_grad()
      self._loss = self._loss_of(self._parameters, self._views, self._labels)
      self._loss.backward()
      self._optimizer.step()
    if self._device.type == 'cuda':
      torch.cuda.synchronize()
    return batches * len(self._labels)

  def info(self) -> dict:
    """Also the loss of the last batch, and the number of threads."""
    return super().info() | {'loss': self._loss.item(), 'threads': torch.get_num_threads()}


class ChannelsLast(TorchStep):
  """Images and kernels lie in memory as NHWC and OHWI."""

  memory_format = torch.channels_last


class Compiled(ChannelsLast):
  """The same by torch.compile."""

  compiled = True


def make_sgd(parameters: dict, task: Task) -> torch.optim.Optimizer:
  """SGD with the task's rates and decays; fused, several times as fast as PyTorch's default.

  At constant rates PyTorch's rule takes the same path as that of 2012, with velocities divided by
  minus the rate.
  """
  groups = collections.defaultdict(list)
  for layer, leaves in parameters.items():
    for name, parameter in leaves.items():
      groups[task.rates[layer][name], task.decays[layer][name]].append(parameter)
  return torch.optim.SGD(
    [
      {'params': members, 'lr': rate, 'weight_decay': decay}
      for (rate, decay), members in groups.items()
    ],
    lr=0.0,
    momentum=task.momentum,
    fused=True,
  )


def _parameters(row: layers.Row, inputs: layers.Shape, memory_format, kernel, bias) -> dict:
  """Weights of a layer of ours in PyTorch's layout; differentiable."""
  match row:
    case layers.Conv():  # HWIO -> OIHW
      kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=memory_format)
    case layers.Dense() if len(inputs) == 3:  # of (H, W, C) in our net and (C, H, W) here
      kernel = kernel.reshape(*inputs, -1).permute(3, 2, 0, 1).flatten(1).contiguous()
    case layers.Dense():
      kernel = kernel.T.contiguous()
  return {'kernel': kernel, 'bias': bias}


def make_forward(table: layers.Table, shape: layers.Shape) -> Callable[..., torch.Tensor]:
  """The function (parameters, float32 (N, C, H, W)) -> outputs of a net; always in training mode.

  `shape` is that of one image, (H, W, C).  Raises Unavailable for rows it does not know.
  """
  functions = [(row.name, _layer(row, inputs)) for row, inputs, _ in layers.walk(table, shape)]

  def forward(parameters, x):
    for name, function in functions:
      x = function(x, **parameters.get(name, {}))
    return x

  return forward


def _layer(row: layers.Row, inputs: layers.Shape) -> Callable[..., torch.Tensor]:
  match row:
    case layers.Conv() if not isinstance(row, layers.Local):
      return _convolution(row, inputs)
    case layers.Dense():
      return lambda x, kernel, bias: functional.linear(x.flatten(1), kernel, bias)
    case layers.Relu():
      return lambda x: functional.relu(x, inplace=True)
    case layers.Tanh():
      return torch.tanh
    case layers.AvgPool():
      # There is no padding to count, but by default torch.compile's gradient is wrong where a
      # window overhangs (pytorch/pytorch#198119).
      return lambda x: functional.avg_pool2d(
        x, row.window, row.stride, ceil_mode=row.ceil, count_include_pad=False
      )
    case layers.MaxPool():
      return lambda x: functional.max_pool2d(x, row.window, row.stride, ceil_mode=row.ceil)
    case layers.ResponseNorm():
      return _response_norm(row)
    case layers.SpatialNorm():
      return _spatial_norm(row)
    case layers.Dropout() if row.inverted:
      return lambda x: functional.dropout(x, 1 - row.keep)
    case layers.Dropout():  # in 2012 the units that are kept stay as they are
      return lambda x: functional.dropout(x, 1 - row.keep) * row.keep
  raise Unavailable(f'its net has no {type(row).__name__} (layer {row.name})')


def _convolution(row: layers.Conv, inputs: layers.Shape):
  before, after = row.edge_padding(inputs[0])  # images are square

  def convolution(x, kernel, bias):
    if before != after:
      x = functional.pad(x, (before, after, before, after))
    padding = before if before == after else 0
    return functional.conv2d(x, kernel, bias, row.stride, padding, groups=row.groups)

  return convolution


def _response_norm(row: layers.ResponseNorm):
  """Across channels, inside each tower.  PyTorch's alpha is divided by the size, ours is not."""

  def norm(x):
    return functional.local_response_norm(x, row.size, row.alpha * row.size, row.beta, row.k)

  if row.groups == 1:
    return norm
  return lambda x: torch.cat([norm(tower) for tower in x.chunk(row.groups, 1)], 1)


def _spatial_norm(row: layers.SpatialNorm):
  """Over a square inside each channel."""

  def norm(x):
    total = functional.avg_pool2d(x * x, row.size, 1, row.size // 2, divisor_override=1)
    return x / (row.k + row.alpha * total).pow(row.beta)

  return norm
