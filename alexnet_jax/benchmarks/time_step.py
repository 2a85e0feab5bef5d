"""The step benchmark: our training step against the same net in PyTorch."""

import contextlib
import dataclasses
import math
import os
import shutil
import statistics
import subprocess
from typing import NamedTuple

import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.contestants import LossAndGrads, Task, Unavailable
from alexnet_jax.benchmarks.rounds import OURS, Comparison, Options, say, take_turns
from alexnet_jax.benchmarks.worker import Contestant, Worker, python_path
from alexnet_jax.errors import UserError


class Tolerance(NamedTuple):
  """Relative differences of loss and gradients above which two sides do not compute the same."""

  loss: float
  gradient: float


# Both are float32 with sums in other orders, and about one unit in a million falls the other way at
# the edge of a ReLU or between the two largest of a pool, which the L2 norm of a gradient shows as
# the root of that.
EXACT = Tolerance(1e-5, 1e-2)
# Products of bfloat16, or of TF32 as both sides have them on a GPU.  Not measured on a GPU yet.
ROUNDED = Tolerance(1e-2, 0.2)

# By default glibc gives large blocks back in every step and takes them again with new page faults,
# which huge pages make few.  PyTorch is fastest when it keeps the memory as well; a raised
# mmap_threshold alone does not do that, because it ends the growth of trim_threshold.
_HUGE_PAGES = 'glibc.malloc.hugetlb=1'
_KEPT = 'glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296'
_OURS = Contestant(OURS, 'alexnet_jax.benchmarks.our_step:OurStep')  # sets up its own process


def _torch(title: str, **arguments) -> Contestant:
  return Contestant(
    title,
    'alexnet_jax.benchmarks.torch_step:TorchStep',
    {'GLIBC_TUNABLES': f'{_HUGE_PAGES}:{_KEPT}'},
    arguments,
    package='torch',
    extra='peers',
  )


PEERS = {
  'eager': _torch('torch eager', channels_last=False, compiled=False),
  'channels_last': _torch('torch channels_last', channels_last=True, compiled=False),
  'compiled': _torch('torch.compile', channels_last=True, compiled=True),
}
# Not measured on a GPU yet.
GPU_PEERS = {
  'cudnn_benchmark': _torch('torch, cuDNN chosen by timing', channels_last=True, cudnn_timed=True),
  'compiled_cudnn_benchmark': _torch(
    'torch.compile, cuDNN chosen by timing', channels_last=True, compiled=True, cudnn_timed=True
  ),
}


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Comparison:
  """Measures the training step of a config.

  Args:
    name: of the config, for the title.
    config: validated; its batch_size is that of all sides.
    options: how to measure.

  Raises:
    UserError: a peer does not compute the same, or a side's loss is not finite.
  """
  pythons = {contestant.title: contestant for contestant in map(_in_python, options.pythons)}
  if len(pythons) < len(options.pythons):
    raise UserError(f'--python={",".join(options.pythons)}: two have the same versions')
  peers = options.wanted(PEERS | GPU_PEERS)
  with contextlib.ExitStack() as stack:
    plain = configs.to_json(config)
    ours = stack.enter_context(_OURS.start(config=plain))
    workers, absent, equality = {OURS: ours}, {}, {}
    if pythons or peers:
      task = ours.call('task')
      others = {title: (contestant, {'config': plain}) for title, contestant in pythons.items()}
      for peer, contestant in peers.items():
        if task.platform != 'cpu' or peer not in GPU_PEERS:
          others[peer] = contestant, {'task': task}
      equality = _start_others(stack, workers, absent, others, task)
    samples, sides = take_turns(workers, options)
    for side, worker in workers.items():
      if not math.isfinite(loss := worker.call('loss')):
        raise UserError(
          f'the loss of {side} became {loss} while it was measured: lower'
          ' --config.optimizer.learning_rate'
        )
    roofline = ours.call('roofline')
    trace = options.profile and options.profile / f'{name}-{config.batch_size}'
    if trace:
      ours.call('profile', trace)
    environment = ours.call('environment')
  speed = statistics.median(sample.per_second for sample in samples[OURS])
  compute_dtype = config.model.compute_dtype
  return Comparison(
    target='step',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}',
    batch_size=config.batch_size,
    measure='per_second',
    notes=(
      *roofline.lines(speed, compute_dtype),
      *(f'{sides[peer]["title"]}: {found}' for peer, found in equality.items()),
      *([f'trace for xprof or Perfetto: {trace}'] if trace else []),
    ),
    samples=samples,
    sides=sides,
    absent=absent,
    environment=environment,
    details={
      'config': plain,
      'equality': {peer: dataclasses.asdict(found) for peer, found in equality.items()},
      'roofline': roofline.to_json(speed, compute_dtype),
    },
  )


def _in_python(python: str) -> Contestant:
  """Our side in another interpreter, named by its version and that of its JAX.

  Raises:
    UserError: there is no such interpreter, or it cannot run our side.
  """
  path = shutil.which(os.path.expanduser(python))
  if not path:
    raise UserError(f'--python={python}: there is no such program: give the path of a Python')
  program = (
    'import platform, jax, alexnet_jax.benchmarks.our_step;'
    " print(f'Python {platform.python_version()}, jax {jax.__version__}')"
  )
  environment = os.environ | {'PYTHONPATH': python_path()}
  command = [path, '-c', program]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    raise UserError(
      f'--python={python} cannot run our side ({last}): install alexnet_jax for it, too'
    )
  title = f'{OURS}, {done.stdout.strip()}'
  return dataclasses.replace(_OURS, title=title, python=path)


def _start_others(
  stack: contextlib.ExitStack,
  workers: dict[str, Worker],
  absent: dict[str, str],
  others: dict[str, tuple[Contestant, dict]],
  task: Task,
) -> dict[str, 'Equality']:
  """Adds those that can take part to `workers`, after showing that they compute the same.

  Args:
    stack: ends their processes.
    workers: has our side.
    absent: gets those that cannot take part, and why.
    others: how to start them, and the arguments of that.
    task: our side's.

  Returns:
    How far each is from us.
  """
  weights = lively_weights(task.weights, last=task.table[-1].name)
  exact = task.platform == 'cpu' and task.compute_dtype == 'float32'
  tolerance = EXACT if exact else ROUNDED
  expected, equality = None, {}
  for name, (contestant, arguments) in others.items():
    try:
      worker = stack.enter_context(contestant.start(**arguments))
      actual = worker.call('probe', weights)
    except Unavailable as reason:
      absent[name] = str(reason)
      continue
    expected = expected or workers[OURS].call('probe', weights)
    equality[name] = check_equal(name, expected, actual, tolerance)
    say(f'{contestant.title}: computes the same')
    workers[name] = worker
  return equality


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


@dataclasses.dataclass(frozen=True)
class Equality:
  """How far a peer is from us: both losses, and the largest relative gradient difference (L2)."""

  our_loss: float
  loss: float
  gradient_difference: float
  where: str
  tolerance: Tolerance

  def __str__(self) -> str:
    loss = abs(self.loss / self.our_loss - 1)
    return (
      f'at the same weights its loss differs by {loss:.1e} (allowed {self.tolerance.loss:g})'
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
  where = max(
    differences, key=lambda key: math.inf if math.isnan(differences[key]) else differences[key]
  )
  result = Equality(ours.loss, peer.loss, differences[where], where, tolerance)
  if not abs(peer.loss - ours.loss) <= tolerance.loss * abs(ours.loss):
    raise UserError(
      f'{name} is not the same computation: its loss is {peer.loss:.6f}, ours'
      f' {ours.loss:.6f}; no ratio is given'
    )
  if not result.gradient_difference <= tolerance.gradient:
    raise UserError(
      f'{name} is not the same computation: its gradient of {where} differs from ours'
      f' by {result.gradient_difference:.1e} of its size (allowed:'
      f' {tolerance.gradient:g}); no ratio is given'
    )
  return result


def _distance(expected: np.ndarray, actual: np.ndarray) -> float:
  expected, actual = expected.astype(np.float64), actual.astype(np.float64)
  difference, size = np.linalg.norm(actual - expected), np.linalg.norm(expected)
  if not difference:
    return 0.0
  return float(difference / size) if size else math.inf
