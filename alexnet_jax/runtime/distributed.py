"""Joins a job of several processes, before anything else asks JAX for devices.

`jax.distributed` finds the other processes by itself, but would also wait for them where there are
none, such as for `python` in an interactive Slurm allocation. So it is called only if the
environment describes a job of several processes.
"""

import importlib.util
import os
import sys
from typing import Any

from alexnet_jax.errors import UserError

_OURS = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def cluster() -> str:
  """The kind of multi-process job that the environment variables describe; '' if none.

  Raises:
    UserError: it is described in part only.
  """
  environ = os.environ
  missing = [name for name in _OURS if name not in environ]
  if not missing:
    return _OURS[0]
  if len(missing) < len(_OURS):
    given = ', '.join(name for name in _OURS if name in environ)
    raise UserError(
      f'{given} set without {", ".join(missing)}: set all three, or use --distributed=off'
    )
  if int(environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:  # an interactive step has one task
    return 'Slurm'
  if int(environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    return 'Open MPI'
  if 'KUBERNETES_SERVICE_HOST' in environ and 'JOB_COMPLETION_INDEX' in environ:
    return 'Kubernetes'
  if environ.get('TPU_WORKER_HOSTNAMES', '').count(','):
    return 'TPU pod'
  if os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0'):
    if importlib.util.find_spec('libtpu'):
      return 'TPU VM'
  return ''


def join(mode: str) -> bool:
  """Joins the job that this process belongs to; must come before JAX looks for devices.

  Args:
    mode: 'auto', 'on' or 'off'.

  Returns:
    Whether there is a job of several processes.

  Raises:
    UserError: mode 'on' and no cluster, or the others cannot be reached.
  """
  found = cluster() if mode != 'off' else ''
  if mode == 'on' and not found:
    raise UserError(
      '--distributed=on: no cluster is recognized; start it with srun, mpirun or launch/local.py,'
      f' or set {", ".join(_OURS)}'
    )
  if not found:
    return False
  import jax

  for name in [name for name in os.environ if name.lower() in ('http_proxy', 'https_proxy')]:
    if found != 'TPU VM':  # a proxy between the processes makes the start hang
      del os.environ[name]
  given: dict[str, Any] = {}
  if found == _OURS[0]:
    try:
      count, index = (int(os.environ[name]) for name in _OURS[1:])
    except ValueError:
      raise UserError(f'{_OURS[1]} and {_OURS[2]} must be whole numbers') from None
    given = {'num_processes': count, 'process_id': index, 'cluster_detection_method': 'deactivate'}
  try:
    jax.distributed.initialize(
      **given,
      # JAX's defaults are 100 and 300 seconds, in which a dead process goes unnoticed.
      heartbeat_timeout_seconds=30,
      shutdown_timeout_seconds=30,
    )
  except Exception as error:  # gRPC's own errors and what the detection of a cluster may raise
    reason = ' '.join(str(error).split())[:300]
    raise UserError(
      f'cannot join the job of {found} ({reason}): start all its processes, or use'
      ' --distributed=off'
    ) from None
  return jax.process_count() > 1


def is_member() -> bool:
  """Whether this process has joined a job of several."""
  if 'jax' not in sys.modules:
    return False
  import jax

  return jax.distributed.is_initialized() and jax.process_count() > 1
