"""What a command settles before JAX's first computation."""

from pathlib import Path

from alexnet_jax.runtime import compilation_cache, cpu, deterministic, distributed, platforms


def start(job: str = 'off', autotune: Path | None = None) -> bool:
  """Sets up memory, XLA's flags, the job, compiled programs on disk, and devices.

  Args:
    job: 'auto', 'on' or 'off', as --distributed; see `distributed.join`.
    autotune: folder that keeps a GPU's choice of algorithms, for runs with
      `config.deterministic`; None for all others.

  Returns:
    Whether this is one process of a job of several.

  Raises:
    UserError: a job that cannot be joined, or $JAX_PLATFORMS names devices that are not here.
  """
  cpu.prepare_process()
  if autotune:
    deterministic.prepare_process(autotune)
  several = distributed.join(job)
  if not several:
    compilation_cache.prepare_process()
  platforms.prepare_process()
  return several
