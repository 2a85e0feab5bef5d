"""The command: flags -> config -> plan -> training.

  python -m alexnet_jax.main --config=configs/digits.py
  python -m alexnet_jax.main --config=configs/cifar10.py:18pct --config.epochs=30
  python -m alexnet_jax.main --config=configs/cifar10.py:18pct --ablation=no_lrn
  python -m alexnet_jax.main --config=configs/imagenet.py --dry_run
  python -m alexnet_jax.main --config=configs/imagenet.py --dry_run --topology=v5e:2x4

The same command resumes a run that was stopped.  Exit codes: 0 done, 1 the disk failed,
2 bad input, 3 diverged, 75 interrupted and saved.
"""

import os
import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.jax_setup import set_up_jax

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/<config>[-<variant>][-<ablation>] if not given.'
)
_ALLOW_CHANGE = flags.DEFINE_list(
  'allow_change',
  [],
  'Config fields that may have changed since the run began.',
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on', 'off'],
  'auto: join the processes of a job of Slurm, Open MPI, a TPU pod, Kubernetes or'
  ' JAX_COORDINATOR_ADDRESS, if there is one; on: fail if there is none; off: a single process.',
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the plan of the run and stop.')
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'With --dry_run: compile for TPUs or GPUs that are not here, such as v5e:2x4 or h100:8, and print'
  " memory, and the compiler's estimate of cycles or the bytes it moves.",
)
_TOPOLOGY_TIMEOUT = flags.DEFINE_float(
  'topology_timeout', 1200.0, 'Seconds that a compilation for --topology may take.', lower_bound=1.0
)
_JSON = flags.DEFINE_string(
  'json', None, "With --topology: file for what was found; '-' is the standard output, alone there."
)


def main() -> None:
  for flag, other in ((_TOPOLOGY, _DRY_RUN), (_JSON, _TOPOLOGY)):
    if flag.value and not other.value:
      raise UserError(f'--{flag.name}={flag.value} does nothing without --{other.name}: add it')
  if _TOPOLOGY.value:
    os.environ['JAX_PLATFORMS'] = 'cpu'  # nothing is computed on a TPU that is here
  config, name = cli.read_config(_WORKDIR.value)
  if _TOPOLOGY.value:
    from alexnet_jax.benchmarks import topology

    file = _JSON.value
    topology.show(config, _TOPOLOGY.value, _TOPOLOGY_TIMEOUT.value, Path(file) if file else None)
    return
  workdir = Path(_WORKDIR.value or Path('runs', name))
  # The imports are late because help and typos need neither jax nor fcntl.
  from alexnet_jax.run.folder import RunFolder

  training = not _DRY_RUN.value
  set_up_jax(
    _DISTRIBUTED.value if training else 'off',
    autotune=RunFolder(workdir).autotune if config.deterministic and training else None,
  )
  from alexnet_jax.train.devices import Devices

  devices = Devices()
  print(devices.describe(config.model), file=sys.stderr, flush=True)
  if config.deterministic and devices.platform != 'gpu':
    print(
      f'config.deterministic does nothing: a {devices.platform} is always deterministic',
      file=sys.stderr,
    )
  if config.model.shard_dense and devices.global_count == 1:
    print('config.model.shard_dense does nothing on one device', file=sys.stderr)
  if devices.process_index == 0:
    from alexnet_jax.train import plan

    plan.show(config, dry_run=_DRY_RUN.value)
  if not training:
    return
  from alexnet_jax.train import loop
  from alexnet_jax.weights.initial import weights_of

  loop.train(
    config,
    workdir,
    command=cli.command_line(),
    allowed=_ALLOW_CHANGE.value,
    weights=weights_of(config, workdir),
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
