"""The peers of the step benchmark: the same net and update in PyTorch, eager or compiled."""

import collections

import torch
from torch.nn import functional

from alexnet_jax.benchmarks.contestants import (
  LossAndGrads,
  Task,
  Unavailable,
  Workload,
  without_dropout,
)
from alexnet_jax.benchmarks.torch_net import TorchNet


class TorchStep(Workload):
  """Forward, backward and update of a batch of float views.

  It has less to do than our step: its views come cropped, flipped and with the mean subtracted, and
  nothing watches for losses that are not finite.
  """

  def __init__(
    self,
    task: Task,
    channels_last: bool = False,
    compiled: bool = False,
    cudnn_timed: bool = False,
  ):
    """Builds the net and its optimizer.

    On a GPU (not measured yet) products are TF32, as ours are there by default, or bfloat16 by
    autocast where the config says so.

    Args:
      task: what to compute.
      channels_last: how images lie in memory.
      compiled: whether torch.compile is used.
      cudnn_timed: whether cuDNN's algorithms are chosen by timing.

    Raises:
      Unavailable: the task has something that is not written here.
    """
    on_gpu = task.platform == 'gpu' and torch.cuda.is_available()
    if task.platform != 'cpu' and not on_gpu:
      raise Unavailable(
        f'this PyTorch computes on CPUs, and our step on a {task.platform}: set JAX_PLATFORMS=cpu'
        ' to compare'
      )
    if task.optimizer != 'momentum' or (task.compute_dtype != 'float32' and not on_gpu):
      raise Unavailable(
        'it knows the 2012 update and, on a CPU, float32 only, not optimizer.name='
        f'{task.optimizer} with model.compute_dtype={task.compute_dtype}'
      )
    self._device = torch.device('cuda' if on_gpu else 'cpu')
    if on_gpu:
      torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = cudnn_timed
    self._task = task
    self._compiled = compiled
    self._format = torch.channels_last if channels_last else torch.contiguous_format
    self._views = (
      torch.tensor(task.views, device=self._device)
      .permute(0, 3, 1, 2)
      .contiguous(memory_format=self._format)
    )
    self._labels = torch.tensor(task.labels, dtype=torch.long, device=self._device)
    net, self._loss_of = self._build(task.table, task.weights)
    self._optimizer = make_optimizer(net, task)
    self._loss = None

  def _build(self, table, weights):
    """The net and the function (views, labels) -> loss."""
    net = TorchNet(table, self._task.view_shape)
    net.load(weights)
    net.to(self._device, memory_format=self._format)

    def loss_of(views, labels):
      return functional.cross_entropy(net(views), labels)

    def rounded_loss_of(views, labels):
      with torch.autocast(self._device.type, torch.bfloat16):
        logits = net(views)
      return functional.cross_entropy(logits.float(), labels)

    if self._task.compute_dtype == 'bfloat16':
      loss_of = rounded_loss_of

    return net, torch.compile(loss_of) if self._compiled else loss_of

  def versions(self) -> dict:
    return {'torch': torch.__version__, 'threads': torch.get_num_threads()}

  def loss_and_grads(self, weights: dict) -> LossAndGrads:
    """Loss and gradients at `weights`, without dropout."""
    net, loss_of = self._build(without_dropout(self._task.table), weights)
    try:
      loss = loss_of(self._views, self._labels)
      loss.backward()
    except RuntimeError as error:
      if not self._compiled:
        raise
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise Unavailable(f'torch.compile failed ({reason})') from None
    return LossAndGrads(loss.item(), net.gradients())

  def run(self, batches: int) -> int:
    for _ in range(batches):
      self._optimizer.zero_grad()
      self._loss = self._loss_of(self._views, self._labels)
      self._loss.backward()
      self._optimizer.step()
    if self._device.type == 'cuda':
      torch.cuda.synchronize()
    return batches * len(self._labels)

  def loss(self) -> float:
    """The loss of the last batch."""
    return self._loss.item()


def make_optimizer(net: TorchNet, task: Task) -> torch.optim.Optimizer:
  """SGD with the task's rates and decays; fused, several times as fast as PyTorch's default.

  At constant rates PyTorch's rule takes the same path as that of 2012, with velocities divided by
  minus the rate.
  """
  groups = collections.defaultdict(list)
  for layer, name, parameter in net.named():
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
