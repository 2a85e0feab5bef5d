"""The whole way of ImageNet, command by command: archives, data set, store, runs, ensemble."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers.tiny_data import encoded, write_imagenet_archives

from alexnet_jax.data import imagenet, tfds_prepare

pytestmark = pytest.mark.slow

# The commands, except that they expect as many images as our archives have.
SMALL = """
import runpy, sys
from alexnet_jax.data import tfds_source
tfds_source.EXPECTED_COUNTS = {'imagenet2012': {'train': 24, 'validation': 10}}
module = sys.argv.pop(1)
runpy.run_module(module, run_name='__main__', alter_sys=True)
"""
SETTINGS = (
  '--config=configs/imagenet.py',
  '--config.data.image_size=40',
  '--config.input.crop=32',
  '--config.model.net=digits',
  '--config.batch_size=8',
  '--config.eval.batch_size=4',
  '--config.epochs=2',
)


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  """A TFDS directory with two archives of generated photos, 1,000 classes and 24 + 10 images."""
  if any(importlib.util.find_spec(name) is None for name in tfds_prepare.NEEDED_MODULES):
    pytest.skip('needs TensorFlow to prepare data sets')
  directory = tmp_path_factory.mktemp('chain') / 'tfds'
  random = np.random.default_rng(0)

  def photo():
    return encoded(random.integers(0, 256, (60, 50, 3), dtype=np.uint8))

  wnids = [imagenet.published_classes()[number] for number in (0, 2, 500, 999)]
  train = {wnid: {f'{wnid}_{k}.JPEG': photo() for k in range(6)} for wnid in wnids}
  write_imagenet_archives(directory / 'downloads/manual', train, [photo() for _ in range(10)])
  return directory


def run(directory, module, *words):
  finished = subprocess.run(
    [sys.executable, '-c', SMALL, module, *words],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'TFDS_DATA_DIR': str(directory)},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert finished.returncode == 0, finished.stdout + finished.stderr
  return finished.stdout + finished.stderr


def test_from_archives_to_an_ensemble_of_two(tfds_dir):
  """Prepare, train twice, evaluate ten views of each and both together."""
  runs = [tfds_dir.parent / f'seed{seed}' for seed in (0, 1)]
  run(tfds_dir, 'alexnet_jax.prepare', *SETTINGS)
  for seed, workdir in enumerate(runs):
    words = (*SETTINGS, f'--config.seed={seed}', f'--workdir={workdir}')
    run(tfds_dir, 'alexnet_jax.main', *words)
    results = json.loads((workdir / 'results.json').read_text())
    assert results['evaluated_images'] == 10 and results['steps'] == 6

  said = run(
    tfds_dir,
    'alexnet_jax.evaluate',
    f'--ensemble={",".join(map(str, runs))}',
    '--views=10',
    '--ensemble_weights=1,3',
  )
  assert 'ten views' in said and 'over 10 images' in said

  def saved(workdir, name):
    with np.load(workdir / name, allow_pickle=False) as file:
      return file['probabilities'], file['label']

  members = [saved(workdir, 'predictions-last-10.npz') for workdir in runs]
  mixed, label = saved(runs[0], 'predictions-ensemble-last-10.npz')
  np.testing.assert_allclose(mixed, 0.25 * members[0][0] + 0.75 * members[1][0], atol=1e-6)
  assert mixed.shape == (10, 1000)
  # The classes that ILSVRC's own numbers of the validation images stand for.
  shipped = imagenet.validation_labels(pathlib.Path('/absent'))[0][:10]
  classes = imagenet.published_classes()
  assert sorted(classes[k] for k in label) == sorted(shipped)
  report = json.loads((runs[0] / 'evaluation-ensemble-last-10.json').read_text())
  *_, ensemble = report['results'].values()
  assert ensemble['top1_error'] == pytest.approx((mixed.argmax(1) != label).mean())
  five = np.argsort(-mixed, axis=1, kind='stable')[:, :5]
  assert ensemble['top5_error'] == pytest.approx(1 - (five == label[:, None]).any(1).mean())
