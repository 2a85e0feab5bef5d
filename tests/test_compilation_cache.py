"""Compiled programs on disk: the same bits with and without, and no harm where none can be kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.runtime import compilation_cache

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

# Two training steps of the digits net; prints a checksum of all that came of them.
STEPS = """
import logging, runpy, zlib
from alexnet_jax import config
from alexnet_jax.benchmarks.our_step import OurStep
from alexnet_jax.runtime import compilation_cache
compilation_cache.prepare_process()
logging.getLogger('jax._src.compiler').setLevel('DEBUG')
logging.getLogger('jax._src.compiler').addHandler(logging.StreamHandler())
settings = runpy.run_path('configs/digits.py')['get_config']()
settings.batch_size = 8
side = OurStep(config.to_json(settings))
side.run(2)
import jax
from alexnet_jax.train.devices import to_host
leaves = jax.tree.leaves((to_host(side._state), to_host(side._metrics)))
print([zlib.crc32(leaf.tobytes()) for leaf in leaves])
"""
HIT = "Persistent compilation cache hit for 'jit__fun'"


def run(*program, **environment):
  done = subprocess.run(
    [sys.executable, *program],
    cwd=ROOT,
    env={name: value for name, value in os.environ.items() if 'COMPILATION_CACHE' not in name}
    | environment,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """The same steps compiled with no cache, compiled into an empty one, and loaded from it."""
  home = str(tmp_path_factory.mktemp('home'))
  there = {'XDG_CACHE_HOME': home}
  without = run('-c', STEPS, JAX_ENABLE_COMPILATION_CACHE='false', **there)
  return Path(home), there, without, run('-c', STEPS, **there), run('-c', STEPS, **there)


def test_loaded_programs_compute_the_same_bits(three):
  home, _, without, cold, warm = three
  assert HIT not in without.stderr and HIT not in cold.stderr
  assert HIT in warm.stderr
  assert cold.stdout == without.stdout and warm.stdout == without.stdout
  assert len(without.stdout.split()) > 20  # leaves, not nothing
  (folder,) = (home / 'alexnet_jax').iterdir()
  assert folder.name.startswith('jax-') and folder.stat().st_mode & 0o077 == 0
  assert any(file.name.startswith('jit__fun') for file in folder.iterdir())


def test_a_damaged_program_is_compiled_again(three):
  home, there, without, *_ = three
  for file in home.rglob('jit__fun*'):
    os.truncate(file, file.stat().st_size // 2)
  again = run('-c', STEPS, **there)
  assert HIT not in again.stderr and again.stdout == without.stdout


def test_without_a_home_nothing_is_kept_and_all_goes_on():
  done = run(
    '-m',
    'alexnet_jax.main',
    '--config=configs/digits.py',
    '--dry_run',
    XDG_CACHE_HOME=os.devnull,
  )
  (line,) = [line for line in done.stderr.splitlines() if 'compiled programs' in line]
  assert line.startswith('compiled programs are not cached: ') and os.devnull in line
  assert 'net           digits' in done.stdout


def test_the_folder_is_of_this_processor_and_its_cores(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  mine = compilation_cache.default_folder()
  assert mine == compilation_cache.default_folder() and mine.parent == tmp_path / 'alexnet_jax'
  monkeypatch.setattr(compilation_cache, 'usable_cores', lambda: 1_000_000)
  more = compilation_cache.default_folder()
  monkeypatch.undo()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  text = 'vendor_id : A\nflags : sse avx512f\n\nvendor_id : A\n'
  monkeypatch.setattr(Path, 'read_text', lambda *_, **__: text)
  other = compilation_cache.default_folder()
  monkeypatch.setattr(Path, 'read_text', lambda *_, **__: text.replace(' avx512f', ''))
  assert len({mine, more, other, compilation_cache.default_folder()}) == 4


def test_the_users_own_folder_is_used(tmp_path):
  script = (
    'import jax; from alexnet_jax.runtime import compilation_cache as c; c.prepare_process();'
    ' print(jax.config.jax_compilation_cache_dir)'
  )
  mine = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'mine'), 'XDG_CACHE_HOME': str(tmp_path)}
  assert run('-c', script, **mine).stdout.strip() == str(tmp_path / 'mine')
  assert not (tmp_path / 'alexnet_jax').exists()
