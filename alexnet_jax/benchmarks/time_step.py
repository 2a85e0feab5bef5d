"""The step benchmark: our training step against the same net in PyTorch."""

import contextlib
import dataclasses
import math

import ml_collections

from alexnet_jax import config as configs
from alexnet_jax.benchmarks.race import OURS, Options, Result, speed_table, take_turns
from alexnet_jax.benchmarks.step_task import check_equal, lively_weights
from alexnet_jax.benchmarks.worker import Contestant, Unavailable, start_worker
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

_OURS = Contestant(OURS, 'alexnet_jax.benchmarks.our_step:OurStep')  # sets up its own process
_MODULE = 'alexnet_jax.benchmarks.torch_step'
# By default glibc gives large blocks back in every step and takes them again with new page faults,
# which huge pages make few.  PyTorch is fastest when it keeps the memory as well; a raised
# mmap_threshold alone does not do that, because it ends the growth of trim_threshold.
_MEMORY = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296'
  ':glibc.malloc.trim_threshold=4294967296'
}
PEERS = {
  'eager': Contestant('torch eager', f'{_MODULE}:TorchStep', _MEMORY),
  'channels_last': Contestant('torch channels_last', f'{_MODULE}:ChannelsLast', _MEMORY),
  'compiled': Contestant('torch.compile', f'{_MODULE}:Compiled', _MEMORY),
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
    ours = stack.enter_context(start_worker(_OURS, config=plain))
    task = ours.call('task')
    weights = lively_weights(task.weights, last=task.table[-1].name)
    peers = {
      f'{OURS}, {python}': dataclasses.replace(_OURS, title=f'{OURS}, {python}', python=python)
      for python in options.pythons
    } | options.wanted(PEERS)
    workers, absent, equality, expected = {OURS: ours}, {}, {}, None
    for peer, contestant in peers.items():
      arguments = {'config': plain} if contestant.workload == _OURS.workload else {'task': task}
      try:
        worker = stack.enter_context(start_worker(contestant, **arguments))
        actual = worker.call('loss_and_grads', weights)
      except Unavailable as reason:
        absent[peer] = str(reason)
        continue
      expected = expected or ours.call('loss_and_grads', weights)
      equality[peer] = check_equal(peer, expected, actual, task.tolerance)
      Console().message(f'{contestant.title}: same loss and gradients')
      workers[peer] = worker
    contestants = take_turns(workers, options)
    for peer, found in contestants.items():
      if not math.isfinite(found['loss']):
        raise UserError(
          f'the loss of {peer} became {found["loss"]} while it was measured: lower'
          ' --config.optimizer.learning_rate'
        )
    steps_per_second = contestants[OURS]['per_second']['median'] / config.batch_size
    roofline = ours.call('roofline')
    utilization, bandwidth_share = roofline.shares(steps_per_second)
    trace = options.profile and options.profile / f'{name}-{config.batch_size}'
    if trace:
      ours.call('profile', trace)
    environment = ours.call('environment')
  return Result(
    target='step',
    title=f'{name}, net {config.model.net}, batch {config.batch_size}',
    lines=(
      *speed_table(contestants, config.batch_size),
      *roofline.lines(steps_per_second),
      *(
        f'{contestants[peer]["title"]}: at the same weights its loss differs by'
        f' {abs(found.loss / found.our_loss - 1):.1e} (allowed {task.tolerance[0]:g}) and its'
        f' gradients by at most {found.gradient_difference:.1e}, in {found.where}'
        f' (allowed {task.tolerance[1]:g})'
        for peer, found in equality.items()
      ),
      *([f'trace for xprof or Perfetto: {trace}'] if trace else []),
    ),
    environment=environment,
    details={
      'batch_size': config.batch_size,
      'config': plain,
      'equality': {peer: found._asdict() for peer, found in equality.items()},
      'roofline': dataclasses.asdict(roofline),
      'utilization': utilization,
      'bandwidth_share': bandwidth_share,
    },
    contestants=contestants,
    absent=absent,
  )
