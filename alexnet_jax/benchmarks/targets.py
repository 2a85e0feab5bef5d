"""What a step is compiled for: accelerators that need not be here, described to their compilers."""

import importlib.metadata
import importlib.util
import re
from typing import Any

from jax.experimental import topologies

from alexnet_jax.benchmarks.chips import CHIPS, Chip
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import did_you_mean
from alexnet_jax.train.devices import Devices

# Of the process that compiles.  libtpu asks neither Google's metadata server nor other processes
# for a TPU, and is silent; the GPU's compiler times no algorithms, for which it would need one.
SETTINGS = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TF_CPP_MIN_LOG_LEVEL': '2',
  'XLA_FLAGS': '--xla_gpu_autotune_level=0',
}
# What XLA must know of a GPU, by the files named in chips.py: cores, float32 units of a core, clock
# in GHz, compute capability, bytes of shared memory of a core and of a block, and of the L2 cache.
_GPUS = {
  'a100': (108, 64, 1.41, 8, 167936, 166912, 41943040),
  'h100': (132, 128, 1.98, 9, 233472, 232448, 52428800),
  'h200': (132, 128, 1.98, 9, 233472, 232448, 52428800),
}
_CUDNN = (9, 10, 0)


def find_chip(topology: str) -> str:
  """The name of a topology's chip.

  Raises:
    UserError: it is not known, or the compiler is not installed.
  """
  name, _, size = topology.partition(':')
  if name not in CHIPS or not re.fullmatch(_size_pattern(name), size):
    hint = '' if name in CHIPS else did_you_mean(name, CHIPS)
    known = (
      f'{", ".join(CHIPS)}, with their number: of TPUs along each axis, such as v5e:2x4, of GPUs'
      ' in a machine, such as h100:8'
    )
    raise UserError(f'--topology={topology}: {f"{hint} " * bool(hint)}give one of {known}')
  if not _package(name):
    missing = (
      "needs the TPU's compiler, 0.7 GB, which needs no TPU: pip install 'jax[tpu]'"
      if CHIPS[name].clock
      else "needs the GPU's compiler, 5 GB, which needs no GPU: pip install 'jax[cuda12]'"
    )
    raise UserError(f'--topology={topology} {missing}')
  return name


def versions(name: str) -> dict[str, str]:
  """Of JAX and of the compiler of a chip."""
  return {each: importlib.metadata.version(each) for each in ('jax', _package(name))}


def describe(topology: str) -> Devices:
  """The devices of a topology; UserError if its compiler does not know it."""
  name, _, size = topology.partition(':')
  chip = CHIPS[name]
  options: dict[str, Any] = {'topology': f'1x1x{size}', 'target_config': _gpu(name, chip)}
  if chip.clock:
    axes = [int(axis) for axis in size.split('x')]
    options = {'chips_per_host_bounds': (*axes, 1)[:3]} if 1 in axes[:2] else {}
    if name == 'v4':
      options['chip_config_name'] = 'megacore'  # both cores are one device, as on a Cloud TPU
  try:
    described = topologies.get_topology_desc(
      topology if chip.clock else name, 'tpu' if chip.clock else 'cuda', **options
    )
  except Exception as error:  # of the compiler
    reason = ' '.join(str(error).split())[:200]
    other = f'{name}:{"2x4" if name[-1] == "e" else "2x2x1" if chip.clock else "8"}'
    raise UserError(
      f'--topology={topology}: the compiler describes none ({reason}): use another size, such as'
      f' {other}'
    ) from None
  return Devices(list(described.devices))


def _size_pattern(name: str) -> str:
  return r'\d+(x\d+){1,2}' if CHIPS[name].clock else r'[1-9]\d*'


def _package(name: str) -> str:
  """What is installed of a chip's compiler; '' if nothing is."""
  packages = ('libtpu',) if CHIPS[name].clock else ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  return next((each for each in packages if importlib.util.find_spec(each)), '')


def _gpu(name: str, chip: Chip) -> str:
  """XLA's stream_executor.GpuTargetConfigProto as text; '' of a TPU."""
  if name not in _GPUS:
    return ''
  cores, units, clock, capability, core_memory, block_memory, cache = _GPUS[name]
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {block_memory}
      shared_memory_per_core: {core_memory}
      l2_cache_size: {cache}
      core_count: {cores}
      fpus_per_core: {units}
      clock_rate_ghz: {clock}
      memory_bandwidth: {chip.bandwidth:.0f}
      device_memory_size: {chip.memory}
      cuda_compute_capability {{ major: {capability} }}
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} patch: {_CUDNN[2]} }}
    device_description_str: "{chip.kind}"
  """
