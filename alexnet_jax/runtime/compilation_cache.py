"""JAX's persistent compilation cache, which is on by default here.

It is in `~/.cache/alexnet_jax/jax-...` (`$XDG_CACHE_HOME` moves it).
`JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
The folder may be deleted at any time.  Since programs from there are run, only the user can write
to it.

JAX's key holds program, jaxlib and XLA's flags.  On a CPU that is not enough: machine code is for
the instructions of one processor (jaxlib logs an error when they differ and runs it all the same:
jax-ml/jax#38445) and for the number of cores that it was divided over.  Both are therefore part of
the folder's name.  On processors for which LLVM avoids gathers, that error is logged for
`+prefer-no-gather` although nothing differs.
"""

import contextlib
import hashlib
import math
import os
import platform
import sys
from pathlib import Path

from alexnet_jax.runtime.environment import cpu_info, usable_cores

_MIN_COMPILE_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def enable() -> None:
  """Turns the cache on; to be called before JAX's first computation.

  Not in a job of several processes: XLA:GPU autotunes on all of them together, and would wait for
  ever for one that has found the program in its cache.
  """
  import jax

  given = jax.config.values['jax_compilation_cache_dir']
  if given is None and jax.config.values['jax_enable_compilation_cache']:
    try:
      place = folder()
      place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # no home, or none that can be written to
      print(
        f'compiled programs are not cached: {error}; JAX_COMPILATION_CACHE_DIR may name a folder',
        file=sys.stderr,
      )
      return
    if not os.access(place, os.W_OK):
      return  # JAX would warn of every program that it cannot write
    jax.config.update('jax_compilation_cache_dir', str(place))
  # Also small programs, of which a start has dozens; the smallest are compiled faster than read.
  if _MIN_COMPILE_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_COMPILE_SECONDS, 0.1)
  # By default JAX would also keep a GPU's autotuning here, in place of a run's own folder.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


@contextlib.contextmanager
def disabled():
  """Programs that are compiled within this context are not cached.

  For programs with oneDNN's convolutions, which jaxlib 0.10 cannot serialize: it fails as if memory
  were short.
  """
  import jax

  seconds = jax.config.values[_MIN_COMPILE_SECONDS]
  jax.config.update(_MIN_COMPILE_SECONDS, math.inf)
  try:
    yield
  finally:
    jax.config.update(_MIN_COMPILE_SECONDS, seconds)


def folder() -> Path:
  """The folder of the cache: the one that the user names, or that of this kind of machine.

  Raises:
    RuntimeError: the user has no home.
  """
  import jax

  if given := jax.config.values['jax_compilation_cache_dir']:
    return Path(given)
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(home, 'alexnet_jax', f'jax-{_machine()}')


def _machine() -> str:
  """A hash that two machines share only if they can run each other's programs."""
  kinds = ('vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU')
  processor = [value for name, value in cpu_info().items() if name.startswith(kinds)]
  parts = [
    platform.machine(),
    *(processor or [platform.processor()]),
    str(usable_cores()),
    os.environ.get('NPROC', ''),
  ]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]
