"""What the environment asks of JAX that is not here, and what is here that JAX does not use."""

import os

import jax
import numpy as np
import pytest
from helpers.commands import run

from alexnet_jax.model.preprocessing import Preprocessing, example_keys
from alexnet_jax.runtime import platforms


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
    assert ('note: JAX_ENABLE_X64 is left aside' in done.stderr) == (bits == '1')
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


def test_accelerators_that_jax_does_not_use_are_told_of(monkeypatch, capsys):
  present = {'/dev/nvidia0'}
  monkeypatch.setattr(os.path, 'exists', present.__contains__)
  monkeypatch.setattr(platforms.shutil, 'which', lambda name: None)
  monkeypatch.delenv('TPU_ACCELERATOR_TYPE', raising=False)
  monkeypatch.delenv('JAX_PLATFORMS')
  platforms.prepare_process()
  (line,) = capsys.readouterr().err.splitlines()
  assert 'an NVIDIA GPU, but JAX computes on the CPU' in line and "'.[cuda13]'" in line
  present.clear()
  platforms.prepare_process()
  assert capsys.readouterr().err == ''
  present.add('/dev/accel0')
  platforms.prepare_process()
  assert "a TPU, but JAX computes on the CPU: pip install '.[tpu]'" in capsys.readouterr().err
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # the user's own choice
  platforms.prepare_process()
  assert capsys.readouterr().err == ''
