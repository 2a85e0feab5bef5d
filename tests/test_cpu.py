"""Settings of the process: convolutions by Eigen, freed memory kept, and what is said of them."""

import os
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from alexnet_jax.runtime import cpu

FLAG = '--xla_cpu_experimental_ynn_fusion_type'

PROGRAM = """
import os, sys
from alexnet_jax.runtime import cpu
if sys.argv[1:]:
  cpu.prepare_process()
import jax, jax.numpy as jnp
def conv(x, k):
  names = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=names)
shapes = [jax.ShapeDtypeStruct(shape, float) for shape in ((8, 27, 27, 48), (5, 5, 48, 128))]
compiled = jax.jit(conv).lower(*shapes).compile()
print(compiled.as_text().count('__ynn_fusion'), cpu.describe(False))
"""


def program(*arguments, **environment):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *arguments],
    env={name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'} | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  fusions, _, words = done.stdout.strip().partition(' ')
  return int(fusions), words


@pytest.mark.slow
def test_convolutions_are_left_to_eigen_with_any_jaxlib():
  """XLA would end the process if it did not know the flag."""
  fusions, _ = program()
  if not fusions:
    pytest.skip('this jaxlib does not give convolutions to YNNPACK here')
  fusions, words = program('prepare', XLA_FLAGS='--xla_cpu_enable_fast_math=false')
  assert fusions == 0 and words.startswith('convolutions by Eigen, freed memory ')
  fusions, words = program(
    'prepare', XLA_FLAGS=f'{FLAG}=individual_convolution'
  )  # the user's own choice
  assert fusions == 1 and words.startswith("convolutions by XLA's choice, ")


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


def test_avx512_is_told_from_avx2(monkeypatch):
  text = 'processor : 0\nflags\t\t: fpu avx2 avx512f avx512dq\n'
  monkeypatch.setattr(Path, 'read_text', lambda *_, **__: text)
  assert cpu.has_avx512()
  monkeypatch.setattr(Path, 'read_text', lambda *_, **__: text.replace(' avx512f', ''))
  assert not cpu.has_avx512()

  def missing(*_, **__):
    raise FileNotFoundError

  monkeypatch.setattr(Path, 'read_text', missing)
  assert not cpu.has_avx512()
