"""The step benchmark: our training step against the same net in PyTorch."""

import contextlib
import dataclasses
import math
import os
import shutil
import subprocess
from typing import NamedTuple

import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.contestants import LossAndGrads, Task, Unavailable
from alexnet_jax.benchmarks.rounds import OURS, Options, Result, say, speed_table, take_turns
from alexnet_jax.benchmarks.worker import Contestant, Worker, python_path
from alexnet_jax.errors import UserError


class Tolerance(NamedTuple):
  """Relative differences of loss and gradients above which two nets are not the same."""

  loss: float
  gradient: float


# Both are float32 with sums in other orders, and about one unit in a million falls the other way at
# the edge of a ReLU or between the two largest of a pool, which the L2 norm of a gradient shows as
# the root of that.
EXACT = Tolerance(1e-5, 1e-2)
# Products of bfloat16, or of TF32 as all have them on a GPU.  Not measured on a GPU yet.
ROUNDED = Tolerance(1e-2, 0.2)

# By default glibc gives large blocks back in every step and takes them again with new page faults,
# which huge pages make few.  PyTorch is fastest when it keeps the memory as well; a raised
# mmap_threshold alone does not do that, because it ends the growth of trim_threshold.
_HUGE_PAGES = 'glibc.malloc.hugetlb=1'
_KEEP = 'glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296'
_OURS = Contestant(OURS, 'alexnet_jax.benchmarks.our_step:OurStep')  # sets up its own process


def _torch(title: str, **arguments) -> Contestant:
  return Contestant(
    title,
    'alexnet_jax.benchmarks.torch_step:TorchStep',
    {'GLIBC_TUNABLES': f'{_HUGE_PAGES}:{_KEEP}'},
    arguments,
    package='torch',
  )


PEERS = {
  'eager': _torch('torch eager', channels_last=False, compiled=False),
  'channels_last': _torch('torch channels_last', channels_last=True, compiled=False),
  'compiled': _torch('torch.compile', channels_last=True, compiled=True),
}


def measure_step(name: str, config: ml_collections.ConfigDict, options: Options) -> Result:
  """Measures the training step of a config.

  Args:
    name: of the config, for the title.
    config: validated; its batch_size is that of all contestants.
    options: how to measure.

  Raises:
    UserError: a peer does not compute the same, or a loss is not finite.
  """
  plain = configs.to_json(config)
  with contextlib.ExitStack() as stack:
    ours = stack.enter_context(Worker(_OURS, config=plain))
    workers, absent, equality = {OURS: ours}, {}, {}
    task = ours.call('task')
    exact = task.platform == 'cpu' and task.compute_dtype == 'float32'
    weights = lively_weights(task.weights, last=task.table[-1].name)
    expected = None
    for peer, contestant in _others(options, plain, task).items():
      try:
        worker = stack.enter_context(Worker(contestant))
        actual = worker.call('loss_and_grads', weights)
      except Unavailable as reason:
        absent[peer] = str(reason)
        continue
      expected = expected or ours.call('loss_and_grads', weights)
      equality[peer] = check_equal(peer, expected, actual, EXACT if exact else ROUNDED)
      say(f'{contestant.title}: computes the same')
      workers[peer] = worker
    contestants = take_turns(workers, options)
    for name_of_peer, found in contestants.items():
      if not math.isfinite(found['loss']):
        raise UserError(
          f'the loss of {name_of_peer} became {found["loss"]} while it was measured: lower'
          ' --config.optimizer.learning_rate'
        )
    roofline = ours.call('roofline')
    trace = options.profile and options.profile / f'{name}-{config.batch_size}'
    if trace:
      ours.call('profile', trace)
    environment = ours.call('environment')
  speed = contestants[OURS]['per_second']['median'] / config.batch_size  # steps per second
  return Result(
    target='step',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}',
    lines=(
      *speed_table(contestants, config.batch_size),
      *roofline.lines(speed),
      *(f'{contestants[peer]["title"]}: {found}' for peer, found in equality.items()),
      *([f'trace for xprof or Perfetto: {trace}'] if trace else []),
    ),
    environment=environment,
    details={
      'batch_size': config.batch_size,
      'config': plain,
      'equality': {peer: found._asdict() for peer, found in equality.items()},
      'roofline': dataclasses.asdict(roofline),
      'utilization': roofline.utilization(speed),
      'bandwidth_share': roofline.bandwidth_share(speed),
    },
    contestants=contestants,
    absent=absent,
  )


def _in_python(python: str, config: dict) -> Contestant:
  """Our step in another interpreter, named by its version and that of its JAX.

  Raises:
    UserError: there is no such interpreter, or it cannot run our step.
  """
  path = shutil.which(os.path.expanduser(python))
  if not path:
    raise UserError(f'--python={python}: there is no such program: give the path of a Python')
  program = (
    'import platform, jax, alexnet_jax.benchmarks.our_step;'
    " print(f'Python {platform.python_version()}, jax {jax.__version__}')"
  )
  environment = os.environ | {'PYTHONPATH': python_path()}
  done = subprocess.run([path, '-c', program], env=environment, capture_output=True, text=True)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    raise UserError(
      f'--python={python} cannot run our step ({last}): install alexnet_jax for it, too'
    )
  title = f'{OURS}, {done.stdout.strip()}'
  return dataclasses.replace(_OURS, title=title, arguments={'config': config}, python=path)


def _others(options: Options, config: dict, task: Task) -> dict[str, Contestant]:
  """Who else is to take the step, by name."""
  pythons = [_in_python(python, config) for python in options.pythons]
  others = {contestant.title: contestant for contestant in pythons}
  if len(others) < len(pythons):
    raise UserError(f'--python={",".join(options.pythons)}: two have the same versions')
  for name, peer in options.wanted(PEERS).items():
    others[name] = dataclasses.replace(peer, arguments=peer.arguments | {'task': task})
  return others


def lively_weights(initial: dict, last: str) -> dict:
  """Random weights in the shape of `initial` at which no layer is idle.

  At the initial weights of the CIFAR nets signals are so small that response norms do nothing, and
  a wrong one would pass.  Here every layer has signals of the size of its input.
  """
  random = np.random.default_rng(0)

  def lively(layer: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == 'bias':
      scale = 0.1
    else:
      fan_in = math.prod(shape[-4:-1])  # of a locally connected layer, the axes of a place
      scale = math.sqrt(2 / fan_in) * (0.02 if layer == last else 1)
    return np.float32(scale) * random.standard_normal(shape, np.float32)

  return {
    layer: {name: lively(layer, name, array.shape) for name, array in leaves.items()}
    for layer, leaves in initial.items()
  }


class Equality(NamedTuple):
  """How far a peer is from ours: both losses, and the largest relative gradient difference (L2)."""

  our_loss: float
  loss: float
  gradient_difference: float
  where: str
  tolerance: Tolerance

  def __str__(self) -> str:
    return (
      'at the same weights its loss differs by'
      f' {abs(self.loss / self.our_loss - 1):.1e} (allowed {self.tolerance.loss:g})'
      f' and its gradients by at most {self.gradient_difference:.1e}, in {self.where}'
      f' (allowed {self.tolerance.gradient:g})'
    )


def check_equal(
  name: str, ours: LossAndGrads, peer: LossAndGrads, tolerance: Tolerance = EXACT
) -> Equality:
  """Compares losses, and gradients parameter by parameter.

  Raises:
    UserError: the peer computes something else, so that its speed would say nothing.
  """
  differences = {
    f'{layer}/{leaf}': _distance(ours.gradients[layer][leaf], gradient)
    for layer, leaves in peer.gradients.items()
    for leaf, gradient in leaves.items()
  }
  where = max(differences, key=differences.get)
  found = Equality(ours.loss, peer.loss, differences[where], where, tolerance)
  reason = ''
  if not abs(peer.loss - ours.loss) <= tolerance.loss * abs(ours.loss):
    reason = f'its loss is {peer.loss:.6f}, ours {ours.loss:.6f}'
  elif not found.gradient_difference <= tolerance.gradient:
    reason = (
      f'its gradient of {where} differs from ours by {found.gradient_difference:.1e} of its size'
      f' (allowed: {tolerance.gradient:g})'
    )
  if reason:
    raise UserError(f'{name} is not the same computation: {reason}; no ratio is given')
  return found


def _distance(expected: np.ndarray, actual: np.ndarray) -> float:
  """Relative, in the L2 norm; inf in place of what is no number."""
  expected, actual = expected.astype(np.float64), actual.astype(np.float64)
  difference, size = np.linalg.norm(actual - expected), np.linalg.norm(expected)
  if not difference:
    return 0.0
  return float(difference / size) if size and not math.isnan(difference) else math.inf
