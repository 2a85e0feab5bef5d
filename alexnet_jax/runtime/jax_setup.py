"""Sets up JAX for a command, before its first computation."""

import importlib.util
import os
import sys
from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.runtime import compilation_cache, cpu, distributed


def set_up_jax(job: str = 'off', autotune: Path | None = None) -> None:
  """Sets up memory, XLA's flags, the job, compiled programs on disk, and devices.

  Args:
    job: 'auto', 'on' or 'off', as --distributed; see `distributed.join`.
    autotune: folder that keeps a GPU's choice of algorithms, for runs with
      `config.deterministic`; None for all others.

  Raises:
    UserError: a job that cannot be joined, or $JAX_PLATFORMS names devices that are not here.
  """
  cpu.configure()
  if autotune:
    _make_gpu_deterministic(autotune.absolute())
  if not distributed.join(job):
    compilation_cache.enable()
  import jax

  if jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # its stubs leave out flags
    jax.config.update('jax_enable_x64', False)
    print('note: JAX_ENABLE_X64 is ignored: nets compute in 32 bits or less', file=sys.stderr)
  local_devices()


def local_devices() -> list:
  """This process's devices.

  Raises:
    UserError: $JAX_PLATFORMS names what is not here.
  """
  import jax

  try:
    return jax.local_devices()
  except (RuntimeError, AssertionError) as error:
    chosen = os.environ.get('JAX_PLATFORMS', '')
    reason = ' '.join(str(error).split())[:200] or 'there is none'
    raise UserError(
      f'JAX_PLATFORMS={chosen}: JAX has no such device here ({reason}); unset it, or set it to cpu'
    ) from None


def _make_gpu_deterministic(folder: Path) -> None:
  """Makes a GPU compute the same bits every time, also after a resume.

  It does with deterministic kernels and the same algorithms; XLA chooses these by timing, so the
  choice is kept in `folder`.  CPUs and TPUs add up in the same order anyway.
  """
  if any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
    folder.mkdir(parents=True, exist_ok=True)
    flags = (
      os.environ.get('XLA_FLAGS', ''),
      '--xla_gpu_deterministic_ops=true',
      f'--xla_gpu_per_fusion_autotune_cache_dir={folder}',
    )
    os.environ['XLA_FLAGS'] = ' '.join(flags).strip()


def resume_note(platform: str, deterministic: bool) -> str:
  """How exactly a run continues after a resume on the same hardware, for the log."""
  if platform == 'gpu' and not deterministic:
    return (
      'resume: same examples, float-close (--config.deterministic=true for the same bits, slower)'
    )
  return 'resume: bit-exact on the same hardware'
