"""What is settled before JAX's first computation: compiler, memory, devices, programs on disk."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, ROOT, run

from alexnet_jax.model.preprocessing import Preprocessing, example_keys
from alexnet_jax.runtime import compilation_cache, cpu

FLAG = '--xla_cpu_experimental_ynn_fusion_type'


def program(text, *arguments, without=(), **environment):
  """The finished process of a program; of variables it inherits none with these in its name."""
  inherited = {k: v for k, v in os.environ.items() if not any(part in k for part in without)}
  done = subprocess.run(
    [sys.executable, '-c', text, *arguments],
    cwd=ROOT,
    env=inherited | environment,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  return done


# CPU: convolutions by Eigen.

CONVOLUTION = """
import sys
from alexnet_jax.runtime import cpu
if sys.argv[1:]:
  cpu.configure()
import jax
def conv(x, k):
  names = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=names)
shapes = [jax.ShapeDtypeStruct(shape, float) for shape in ((8, 27, 27, 48), (5, 5, 48, 128))]
compiled = jax.jit(conv).lower(*shapes).compile()
print(compiled.as_text().count('__ynn_fusion'), cpu.settings(False))
"""


@pytest.mark.slow
def test_convolutions_are_left_to_eigen_with_any_jaxlib():
  """XLA would end the process if it did not know the flag."""

  def fusions(*arguments, **environment):
    done = program(CONVOLUTION, *arguments, without=['XLA_FLAGS'], **environment)
    count, _, words = done.stdout.strip().partition(' ')
    return int(count), words

  if not fusions()[0]:
    pytest.skip('this jaxlib does not give convolutions to YNNPACK here')
  count, words = fusions('configure', XLA_FLAGS='--xla_cpu_enable_fast_math=false')
  assert count == 0 and words.startswith('convolutions by Eigen, freed memory ')
  own_choice = f'{FLAG}=individual_convolution'
  count, words = fusions('configure', XLA_FLAGS=own_choice)
  assert count == 1 and words.startswith("convolutions by XLA's choice, ")


@pytest.mark.parametrize(
  'content, known',
  [
    (f'..{FLAG[2:]}\0..LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION', True),
    (f'..{FLAG[2:]}..LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION', False),  # a field, not a flag
    (f'..{FLAG[2:]}\0..LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT', False),
    ('another library', False),
  ],
)
def test_the_flag_is_set_where_jaxlib_knows_it(content, known, monkeypatch, tmp_path):
  (tmp_path / '__init__.py').write_bytes(b'')
  (tmp_path / 'libjax_common.so').write_bytes(content.encode())
  monkeypatch.setattr(jaxlib, '__file__', str(tmp_path / '__init__.py'))
  for given in ('', '--xla_other=1', '/a/file/of/flags', f'{FLAG}=+dot'):
    monkeypatch.setenv('XLA_FLAGS', given)
    cpu._prefer_eigen_convolutions()
    mine = known and given in ('', '--xla_other=1')
    expected = f'{FLAG}=-individual_convolution {given}'.strip() if mine else given
    assert os.environ['XLA_FLAGS'] == expected


# Devices and types that the environment asks for.


@pytest.mark.slow
@pytest.mark.parametrize('module, platform', [('main', 'cuda'), ('diagnose', 'tpu')])
def test_a_platform_that_is_not_here_is_one_line(module, platform):
  done = run(f'alexnet_jax.{module}', '--config=configs/digits.py', JAX_PLATFORMS=platform)
  last = done.stderr.splitlines()[-1]
  assert last.startswith(f'error: JAX_PLATFORMS={platform}: ') and 'set it to cpu' in last
  assert done.returncode == 2 and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_64_bits_are_left_aside_in_training(tmp_path):
  """The same losses to the last digit, and one line about it."""
  losses = []
  for bits in ('0', '1'):
    workdir = tmp_path / bits
    flags = ('--config=configs/digits.py', '--config.epochs=0.2', f'--workdir={workdir}')
    done = run('alexnet_jax.main', *flags, JAX_ENABLE_X64=bits)
    assert done.returncode == 0, done.stderr
    assert ('note: JAX_ENABLE_X64 is ignored' in done.stderr) == (bits == '1')
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    losses.append([line.partition('"learning_rate"')[0] for line in lines])
  assert losses[0] == losses[1] and '"train/loss": ' in losses[0][0]


def test_views_are_cut_with_64_bits_too():
  """Of programs that use the library with JAX_ENABLE_X64."""
  images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), np.uint8)
  mean, scale, basis = np.zeros(3, np.float32), np.ones(3, np.float32), np.eye(3, dtype=np.float32)
  cut = Preprocessing(5, mean, scale, basis, 0, random_crop=True, random_flip=False)

  def views():
    keys = example_keys(0, np.int32(1), np.arange(3, dtype=np.int32))
    return cut.training_views(images, keys, 0.0), cut.test_view(images, np.float32([1, 1, 0]))

  expected = views()
  jax.config.update('jax_enable_x64', True)
  try:
    found = views()
  finally:
    jax.config.update('jax_enable_x64', False)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


# Compiled programs on disk: the same bits with and without, and no harm where none can be written.

# Two training steps of the digits net; prints a checksum of all that came of them.
STEPS = """
import logging, runpy, zlib
from alexnet_jax import config
from alexnet_jax.benchmarks.our_step import OurStep
from alexnet_jax.runtime import compilation_cache
compilation_cache.enable()
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


@pytest.mark.slow
def test_loaded_programs_compute_the_same_bits(tmp_path):
  """Compiled with no cache, into an empty one, loaded from it, and compiled for a damaged one."""

  def steps(**environment):
    environment['XDG_CACHE_HOME'] = str(tmp_path)
    return program(STEPS, without=['COMPILATION_CACHE'], **environment)

  without = steps(JAX_ENABLE_COMPILATION_CACHE='false')
  cold, warm = steps(), steps()
  assert HIT not in without.stderr and HIT not in cold.stderr
  assert HIT in warm.stderr
  assert cold.stdout == without.stdout and warm.stdout == without.stdout
  assert len(without.stdout.split()) > 20  # leaves, not nothing
  (folder,) = (tmp_path / 'alexnet_jax').iterdir()
  assert folder.name.startswith('jax-') and folder.stat().st_mode & 0o077 == 0
  files = [file for file in folder.iterdir() if file.name.startswith('jit__fun')]
  assert files
  for file in files:
    os.truncate(file, file.stat().st_size // 2)
  again = steps()
  assert HIT not in again.stderr and again.stdout == without.stdout


@pytest.mark.slow
def test_without_a_home_no_program_is_written_and_all_goes_on(monkeypatch):
  monkeypatch.delitem(ENVIRONMENT, 'JAX_COMPILATION_CACHE_DIR')
  done = run('alexnet_jax.main', '--config=digits', '--dry_run', XDG_CACHE_HOME=os.devnull)
  (line,) = [line for line in done.stderr.splitlines() if 'compiled programs' in line]
  assert line.startswith('compiled programs are not cached: ') and os.devnull in line
  assert 'net           digits' in done.stdout


def test_programs_are_of_this_processor_and_its_cores(monkeypatch):
  text = 'vendor_id : A\nflags : sse avx512f\n\nvendor_id : A\n'
  machines = []
  for cores, cpuinfo in ((2, text), (4, text), (2, text.replace(' avx512f', '')), (2, text)):
    monkeypatch.setattr(Path, 'read_text', lambda *_, text=cpuinfo, **__: text)
    monkeypatch.setattr(compilation_cache, 'usable_cores', lambda cores=cores: cores)
    machines.append(compilation_cache._machine())
    assert cpu.has_avx512() == ('avx512f' in cpuinfo)
  assert len(set(machines)) == 3 and machines[0] == machines[3]
