"""JAX's persistent compilation cache, which is on by default here.

It is in `~/.cache/alexnet_jax/jax-...` (`$XDG_CACHE_HOME` moves it).
`JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` does without.
The folder may be deleted at any time.  Whoever can write there decides what runs here, so it is
private to the user.

What is loaded is the machine code that was compiled, and a run has the same bits either way.  JAX's
key holds program, jaxlib and XLA's flags.  On a CPU that is not enough: machine code is for
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
from typing import Any

from alexnet_jax.runtime.cores import usable_cores

# Also small programs, of which a start has dozens; the smallest are compiled faster than read.
_MIN_COMPILE_SECONDS = 0.1


def prepare_process() -> None:
  """Turns the cache on; to be called before JAX's first computation.

  Only for a process alone: where one of several finds a program and another has to compile it, a
  GPU's compiler, which works on it together, would wait for ever.
  """
  import jax

  config: Any = jax.config  # whose stubs leave out flags
  if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
    try:
      folder = default_folder()
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # no home, or none that can be written to
      print(
        f'compiled programs are not cached: {error}; JAX_COMPILATION_CACHE_DIR may name a folder',
        file=sys.stderr,
      )
      return
    if not os.access(folder, os.W_OK):
      return  # JAX would warn of every program that it cannot write
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS)
  # By default JAX would also keep a GPU's autotuning here, in place of a run's own folder.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


@contextlib.contextmanager
def nothing_kept():
  """Programs that are compiled within this context are not cached.

  For programs that jaxlib 0.10 does not know how to write down (those with oneDNN's convolutions):
  it fails in a way that looks like too little memory.
  """
  import jax

  name = 'jax_persistent_cache_min_compile_time_secs'
  seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, seconds)


def folder() -> Path:
  """The folder of the cache, which need not exist.

  Raises:
    RuntimeError: the user has no home.
  """
  import jax

  config: Any = jax.config  # whose stubs leave out flags
  return Path(config.jax_compilation_cache_dir or default_folder())


def default_folder() -> Path:
  """The folder for this processor and number of cores."""
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(home, 'alexnet_jax', f'jax-{_machine()}')


def _machine() -> str:
  """A name that two machines share only if they can run each other's programs."""
  try:
    text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
  except OSError:
    text = platform.processor()
  features = [
    line
    for line in text.partition('\n\n')[0].splitlines() or ['']
    if line.startswith(('vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU'))
  ]
  facts = [platform.machine(), *features, str(usable_cores()), os.environ.get('NPROC', '')]
  return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:12]
