"""Runs that start from a trained net: what is taken, new, frozen and refused."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from helpers.commands import error_line, get_config, run
from helpers.tiny_data import write_photos
from helpers.trained import (
  CLASSES,
  digits_config,
  digits_net,
  preprocessing,
  random_variables,
  write_run,
)
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax.data.store import Split, Store
from alexnet_jax.errors import UserError
from alexnet_jax.inference.predictor import Predictor
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.weights import initial
from alexnet_jax.weights.run_folder import load_workdir

pytestmark = pytest.mark.slow


def store_of(classes, size=32):
  split = Split(np.zeros((100, 1, 1, 3), np.uint8), np.zeros(100, np.int32))
  mean = np.full((size, size, 3), 50, np.float32)
  return Store(None, tuple(classes), split, split, mean, np.ones(3), np.eye(3), {})


# The state before the first step.


@pytest.mark.parametrize('classes', [('no', 'yes'), tuple(map(str, range(3000)))])
def test_all_but_the_last_layer_are_taken(classes):
  weights = digits_net()
  config = digits_config(weights='somewhere')
  experiment = make_experiment(config, store_of(classes), 'cpu', weights)
  state = jax.tree.map(np.asarray, experiment.initial_state())
  for layer, leaves in weights.variables['params'].items():
    for name, leaf in leaves.items():
      if layer != 'fc5':
        np.testing.assert_array_equal(state.params[layer][name], leaf)
  last = state.params['fc5']
  assert last['kernel'].shape == (128, len(classes))
  assert last['kernel'].std() == pytest.approx(np.sqrt(2 / 128), rel=0.15)  # He, as the table says
  assert not last['bias'].any()


def test_the_last_layer_stays_where_the_classes_do():
  weights, config = digits_net(), digits_config(weights='somewhere')
  for classes, kept in ((CLASSES, True), (CLASSES[::-1], False), (CLASSES[:2], False)):
    state = make_experiment(config, store_of(classes), 'cpu', weights).initial_state()
    taken = weights.variables['params']['fc5']['kernel']
    same = taken.shape == state.params['fc5']['kernel'].shape and np.array_equal(
      state.params['fc5']['kernel'], taken
    )
    assert same == kept


def test_running_moments_and_average_are_taken():
  weights = digits_net(net='cifar_bn', variables=random_variables('cifar_bn', 7, 32))
  config = digits_config(
    **{'weights': 'x', 'model.net': 'cifar_bn', 'input.crop': 32, 'ema_decay': 0.9}
  )
  state = make_experiment(config, store_of('ab'), 'cpu', weights).initial_state()
  for name, leaf in weights.variables['batch_stats']['bn3'].items():
    np.testing.assert_array_equal(state.batch_stats['bn3'][name], leaf)
  kernel = weights.variables['params']['fc7']['kernel']
  np.testing.assert_array_equal(state.ema['fc7']['kernel'], kernel)


def test_another_net_or_view_is_refused():
  config = digits_config(**{'weights': 'w.npz', 'model.net': 'cifar_80sec'})
  with pytest.raises(UserError, match='w.npz holds net digits, .* config.model.net=cifar_80sec'):
    make_experiment(config, store_of('ab'), 'cpu', digits_net())
  config = digits_config(**{'weights': 'w.npz', 'model.width': 0.5})
  with pytest.raises(UserError, match='net digits, .* fit config.model.net=digits, width 1/2: use'):
    make_experiment(config, store_of('ab'), 'cpu', digits_net())
  config = digits_config(**{'weights': 'w.npz', 'input.crop': 32})
  with pytest.raises(UserError, match=r'fc4/kernel of shape \(576, 128\).*input.crop=28'):
    make_experiment(config, store_of('ab'), 'cpu', digits_net())


def test_preprocessing_is_that_of_the_weights():
  weights, config = digits_net(), digits_config(weights='x')
  own = make_experiment(config, store_of('ab'), 'cpu', weights).recipe.preprocessing
  np.testing.assert_array_equal(own.mean, np.full((28, 28, 3), 50))
  config.input.normalization = 'weights'
  taken = make_experiment(config, store_of('ab'), 'cpu', weights).recipe.preprocessing
  np.testing.assert_array_equal(taken.mean, preprocessing().mean)
  np.testing.assert_array_equal(taken.scale, preprocessing().scale)
  wide = digits_net(preprocessing=preprocessing(32))
  cut = make_experiment(config, store_of('ab'), None, wide).recipe.preprocessing
  np.testing.assert_array_equal(cut.mean, preprocessing(32).mean[2:30, 2:30])


# The config.


def test_open_fields_are_filled_in(monkeypatch):
  weights = digits_net(resize='warp', image_size=40)
  monkeypatch.setattr(initial, 'load', lambda path: weights)
  config = get_config('finetune:/images')
  config.weights = 'x'
  assert set(configs.fields_from_weights(config)) == {
    'model.net',
    'data.image_size',
    'data.resize',
    'input.crop',
    'optimizer.layer_lr_factors.last',
  }
  initial.fill_from_weights(config)
  assert not configs.fields_from_weights(config)
  configs.validate(config)
  assert (config.model.net, config.data.image_size, config.data.resize) == ('digits', 40, 'warp')
  assert config.input.crop == 28
  assert dict(config.optimizer.layer_lr_factors) == {'fc5': ((0.0, 10.0),)}
  config = get_config('finetune:/images')
  config.weights, config.data.resize, config.input.crop = 'x', 'crop', 24
  weights = digits_net(width=0.5)
  initial.fill_from_weights(config)
  assert (config.data.resize, config.input.crop) == ('crop', 24)  # what is said stays
  assert config.model.width == 0.5
  config.model.net, config.model.width = '', 0.25
  with pytest.raises(UserError, match='width=0.25: config.weights=x holds net digits, width 1/2;'):
    initial.fill_from_weights(config)


def test_weights_as_normalization_need_weights():
  config = digits_config(**{'input.normalization': 'weights'})
  with pytest.raises(UserError, match='normalization=weights.*--config.weights'):
    configs.validate(config)
  config.weights, config.input.scale = 'somewhere', 0.5
  with pytest.raises(UserError, match='input.scale=0.5'):  # a resumed run would scale twice
    configs.validate(config)


# Whole runs.


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data') / 'photos'
  write_photos(folder / 'train', 24)
  write_photos(folder / 'validation', 6)
  return folder


@pytest.fixture(scope='module')
def finetuned(photos, tmp_path_factory):
  """A run with conv1 frozen and conv2 slowed, whose weights and data are gone by now."""
  folder = tmp_path_factory.mktemp('runs')
  trained = write_run(folder / 'trained', digits_config(), digits_net().variables)
  data = folder / 'photos'
  shutil.copytree(photos, data)
  factors = "{'last': ((0.0, 10.0),), 'conv1': ((0.0, 0.0),), 'conv2': ((0.0, 0.5),)}"
  words = (
    f'--config=configs/finetune.py:{data}',
    f'--config.weights={trained}',
    f'--config.optimizer.layer_lr_factors={factors}',
    '--config.epochs=4',
    '--config.batch_size=16',
    f'--workdir={folder / "run"}',
  )
  process = run('alexnet_jax.main', *words)
  assert process.returncode == 0, process.stderr
  shutil.rmtree(trained)
  return folder / 'run', words, process


def test_frozen_layers_are_equal_to_the_bit(finetuned):
  workdir, _, process = finetuned
  assert 'fc5 starts at random, for 2 classes instead of 7' in process.stderr
  before, after = (
    digits_net().variables['params'],
    load_workdir(workdir, 'last').variables['params'],
  )
  for name, leaf in before['conv1'].items():
    assert np.array_equal(after['conv1'][name], leaf)
  for layer in ('conv2', 'conv3', 'fc4'):
    assert not np.array_equal(after[layer]['kernel'], before[layer]['kernel'])
    assert np.abs(after[layer]['kernel'] - before[layer]['kernel']).max() < 0.1
  assert after['fc5']['kernel'].shape == (128, 2)


def test_the_config_in_the_folder_is_concrete(finetuned):
  workdir, _, _ = finetuned
  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['net'] == 'digits' and config['input']['crop'] == 28
  assert config['data']['image_size'] == 32 and config['data']['resize'] == 'crop'
  assert config['optimizer']['layer_lr_factors']['fc5'] == [[0.0, 10.0]]
  assert 'last' not in config['optimizer']['layer_lr_factors']
  with np.load(workdir / 'preprocessing.npz', allow_pickle=False) as saved:
    np.testing.assert_array_equal(saved['mean'], preprocessing().mean)


def test_two_classes_are_learnt_and_confusions_told(finetuned):
  workdir, _, process = finetuned
  results = json.loads((workdir / 'results.json').read_text())
  assert results['eval/top1_error'] == 0
  assert [row['class'] for row in results['classes']] == ['blue', 'red']
  assert {row['images'] for row in results['classes']} == {6}
  assert 'mostly taken for' in process.stderr
  with Image.open(workdir / 'figures' / 'confusion.png') as figure:
    assert min(figure.size) > 300


def test_a_run_predicts_without_its_data(finetuned, photos):
  workdir, _, _ = finetuned
  with np.load(workdir / 'predictions-last-1.npz', allow_pickle=False) as saved:
    probabilities, labels = saved['probabilities'], saved['label']
  data = workdir.parent / 'photos'
  stores = workdir.parent / 'photos-stores'
  for folder in (data, stores):
    folder.rename(folder.with_name(f'away-{folder.name}'))
  try:
    files = sorted((photos / 'validation').glob('*/*.png'))
    found = Predictor(load_workdir(workdir, 'last'))(files)
  finally:
    for folder in (data, stores):
      folder.with_name(f'away-{folder.name}').rename(folder)
  assert [prediction.true_label for prediction in found] == labels.tolist()
  for prediction, expected in zip(found, probabilities, strict=True):
    np.testing.assert_allclose(
      prediction.probabilities[list(np.argsort(prediction.labels))], expected, rtol=1e-3, atol=1e-6
    )


def test_going_on_needs_no_weights(finetuned):
  workdir, words, _ = finetuned
  kept = (workdir / 'results.json').read_bytes()
  (workdir / 'results.json').unlink()
  process = run('alexnet_jax.main', *words)
  assert process.returncode == 0, process.stderr
  assert 'resuming from step 12' in process.stderr
  again = json.loads((workdir / 'results.json').read_bytes())
  for name in ('eval/loss', 'classes'):
    assert again[name] == json.loads(kept)[name]


@pytest.mark.parametrize(
  'change, told',
  [
    ('--config.weights=elsewhere', r'weights: .*trained -> elsewhere'),
    ('--workdir={fresh}', 'trained'),
    ('--config.weights=', 'config.weights is missing'),
  ],
)
def test_refusals_take_one_line(finetuned, tmp_path, change, told):
  _, words, _ = finetuned
  process = run('alexnet_jax.main', *words, change.format(fresh=tmp_path / 'fresh'))
  assert re.search(told, error_line(process))
  assert not (tmp_path / 'fresh').exists()
