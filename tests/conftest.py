"""Eight virtual CPU devices, before JAX starts; programs that tests start have one.

The programs share what they compile, as those of users do, in a folder that the session begins with
and takes away.
"""

import os
import signal
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
if 'PYTEST_XDIST_WORKER' not in os.environ:  # else it is the session's, which started this process
  _programs = tempfile.TemporaryDirectory(prefix='programs-', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _programs.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_enable_compilation_cache', False)
jax.config.update('jax_num_cpu_devices', 8)
# Most of the time goes into compiling small functions: LLVM's optimizations cost twice what they
# save.  JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run, as do the programs tests start.
if 'JAX_DISABLE_MOST_OPTIMIZATIONS' not in os.environ:
  jax.config.update('jax_disable_most_optimizations', True)

# A test run that was started by nohup or in the background ignores these, and so would the commands
# that tests start and stop.
for number, handler in {
  signal.SIGHUP: signal.SIG_DFL,
  signal.SIGINT: signal.default_int_handler,
}.items():
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, handler)


@pytest.fixture(params=['cpu', 'tpu', 'cuda'])
def compiled_for(request, monkeypatch):
  """Computes here what would be compiled for another platform."""

  def chosen(*arrays, default, **by_platform):
    return by_platform.get(request.param, default)(*arrays)

  monkeypatch.setattr(jax.lax, 'platform_dependent', chosen)
