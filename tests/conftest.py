"""Eight virtual CPU devices, before JAX starts; programs that tests start have one."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # nothing is taken over from run to run

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
# Most of the time goes into compiling small functions: LLVM's optimizations cost twice what they
# save.  JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run, as do the programs tests start.
if 'JAX_DISABLE_MOST_OPTIMIZATIONS' not in os.environ:
  jax.config.update('jax_disable_most_optimizations', True)
