"""Which promise a resumed run can keep: the same bits, or the same examples and close numbers.

Order, crops, noise and masks never depend on the machine. Sums do: XLA's CPU and TPU backends add
up in the same order every time, a GPU only with deterministic kernels and with the algorithms that
were chosen by timing when the run began, which are therefore kept in the run's folder.
"""

import importlib.util
import os
from pathlib import Path


def prepare_process(folder: Path) -> None:
  """Has a GPU repeat itself to the bit; to be called before JAX's first computation.

  Args:
    folder: of the run, for the algorithms that are chosen by timing.
  """
  if any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    flags = (
      os.environ.get('XLA_FLAGS', ''),
      '--xla_gpu_deterministic_ops=true',
      f'--xla_gpu_per_fusion_autotune_cache_dir={folder}',
    )
    os.environ['XLA_FLAGS'] = ' '.join(flags).strip()


def promise(platform: str, deterministic: bool) -> str:
  """What holds for a run that is stopped and resumed on the same hardware, for people."""
  if platform == 'gpu' and not deterministic:
    return (
      'resume: same examples, float-close (--config.deterministic=true for the same bits, slower)'
    )
  return 'resume: bit-exact on the same hardware'
