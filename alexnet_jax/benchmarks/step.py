"""The step benchmark: our training step against the same net in PyTorch."""

import contextlib
import dataclasses
import math

import ml_collections
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.comparison import OURS, Comparison, Options, say, take_turns
from alexnet_jax.benchmarks.sides import Probe, Unavailable
from alexnet_jax.benchmarks.worker import Contender, Worker
from alexnet_jax.errors import UserError

# Relative differences above which two sides do not compute the same.  Both are float32 with sums in
# other orders, and about one unit in a million falls the other way at the edge of a ReLU or between
# the two largest of a pool, which the L2 norm of a gradient shows as the root of that.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-2

# By default glibc gives large blocks back in every step and takes them again with new page faults,
# which huge pages make few.  PyTorch is fastest when it keeps the memory as well; a raised
# mmap_threshold alone does not do that, because it ends the growth of trim_threshold.
_HUGE_PAGES = 'glibc.malloc.hugetlb=1'
_KEPT = 'glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296'
_OURS = Contender(OURS, 'alexnet_jax.benchmarks.our_step:OurStep')  # sets up its own process


def _torch(title: str, **arguments) -> Contender:
  return Contender(
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


def compare(name: str, config: ml_collections.ConfigDict, options: Options) -> Comparison:
  """Measures the training step of a config.

  Args:
    name: of the config, for the title.
    config: validated; its batch_size is that of all sides.
    options: how to measure.

  Raises:
    UserError: a peer does not compute the same, or a side's loss is not finite.
  """
  with contextlib.ExitStack() as stack:
    ours = stack.enter_context(_OURS.start(config=configs.to_json(config)))
    workers, absent = {OURS: ours}, {}
    equality = _start_peers(stack, workers, absent, options) if options.wanted(PEERS) else {}
    samples, sides = take_turns(workers, options)
    for side, worker in workers.items():
      if not math.isfinite(loss := worker.call('loss')):
        raise UserError(
          f'the loss of {side} became {loss} while it was measured: lower'
          ' --config.optimizer.learning_rate'
        )
    environment = ours.call('environment')
  return Comparison(
    target='step',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}',
    batch_size=config.batch_size,
    measure='per_second',
    notes=tuple(f'{PEERS[peer].title}: {found}' for peer, found in equality.items()),
    samples=samples,
    sides=sides,
    absent=absent,
    environment=environment,
    details={
      'config': configs.to_json(config),
      'equality': {peer: dataclasses.asdict(found) for peer, found in equality.items()},
    },
  )


def _start_peers(
  stack: contextlib.ExitStack, workers: dict[str, Worker], absent: dict[str, str], options: Options
) -> dict[str, 'Equality']:
  """Adds the peers that can take part to `workers`, after showing that they compute the same."""
  task = workers[OURS].call('task')
  weights = lively_weights(task.weights, last=task.table[-1].name)
  expected, equality = None, {}
  for name, contender in options.wanted(PEERS).items():
    try:
      worker = stack.enter_context(contender.start(task=task))
      actual = worker.call('probe', weights)
    except Unavailable as reason:
      absent[name] = str(reason)
      continue
    expected = expected or workers[OURS].call('probe', weights)
    equality[name] = check_equal(name, expected, actual)
    say(f'{contender.title}: computes the same')
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
  loss_tolerance: float = LOSS_TOLERANCE
  gradient_tolerance: float = GRADIENT_TOLERANCE

  def __str__(self) -> str:
    loss = abs(self.loss / self.our_loss - 1)
    return (
      f'at the same weights its loss differs by {loss:.1e} (allowed {self.loss_tolerance:g})'
      f' and its gradients by at most {self.gradient_difference:.1e}, in {self.where}'
      f' (allowed {self.gradient_tolerance:g})'
    )


def check_equal(name: str, ours: Probe, peer: Probe) -> Equality:
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
  result = Equality(ours.loss, peer.loss, differences[where], where)
  if not abs(peer.loss - ours.loss) <= LOSS_TOLERANCE * abs(ours.loss):
    raise UserError(
      f'{name} is not the same computation: its loss is {peer.loss:.6f}, ours'
      f' {ours.loss:.6f}; no ratio is given'
    )
  if not result.gradient_difference <= GRADIENT_TOLERANCE:
    raise UserError(
      f'{name} is not the same computation: its gradient of {where} differs from ours'
      f' by {result.gradient_difference:.1e} of its size (allowed:'
      f' {GRADIENT_TOLERANCE:g}); no ratio is given'
    )
  return result


def _distance(expected: np.ndarray, actual: np.ndarray) -> float:
  expected, actual = expected.astype(np.float64), actual.astype(np.float64)
  difference, size = np.linalg.norm(actual - expected), np.linalg.norm(expected)
  if not difference:
    return 0.0
  return float(difference / size) if size else math.inf
