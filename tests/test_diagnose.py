"""Statistics against float64 NumPy, the one-batch run against its parts, and the command."""

import json
import math

import jax
import numpy as np
import pytest
from helpers.commands import run
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers, nets, onednn
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.runtime import cpu
from alexnet_jax.train import diagnosis
from alexnet_jax.train.diagnosis import StepResult

TABLE = (
  layers.Dense('fc1', 40, init=0.002, bias=0.3),
  layers.Relu('relu1'),
  layers.Dropout('drop1', keep=0.25),
  layers.BatchNorm('bn1'),
  layers.Dense('fc2', 5, init=0.1),
)


@pytest.fixture
def config():
  config = configs.default()
  config.model.net = 'digits'
  config.data.num_classes, config.data.image_size, config.input.crop = 5, 12, 10
  return config


def run_of(table, config, monkeypatch):
  """A one-batch run of a table, its initial state, and its batch of seven."""
  monkeypatch.setitem(nets.NETS, 'digits', lambda classes: table)
  store = diagnosis.generated_store(5, 7, 12)
  experiment = diagnosis.one_batch_experiment(config, store, 7)
  return experiment, experiment.initial_state(), store.train.images, store.train.labels


@pytest.mark.parametrize('field, expected', [('auto', True), ('off', False)])
def test_the_batch_is_learned_with_the_convolutions_of_a_run(field, expected, config, monkeypatch):
  monkeypatch.setattr(cpu, 'has_avx512', lambda: True)
  monkeypatch.setattr(onednn, 'available', lambda: True)
  config.model.onednn = field
  experiment, *_ = run_of(TABLE, config, monkeypatch)
  assert experiment.model.onednn == expected


# Activations.


def test_statistics_are_those_of_numpy(config, monkeypatch):
  experiment, state, images, _ = run_of(TABLE, config, monkeypatch)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
  x = (images - images.mean(0, dtype=np.float64))[:, 1:11, 1:11]
  expected = {'input': x}
  x = expected['fc1'] = x.reshape(7, -1) @ params['fc1']['kernel'] + params['fc1']['bias']
  x = expected['relu1'] = np.maximum(x, 0)
  x = expected['bn1'] = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
  expected['fc2'] = x @ params['fc2']['kernel'] + params['fc2']['bias']

  found = diagnosis.activations(experiment, state, images)
  assert [row['name'] for row in found] == list(expected)
  assert [row['kind'] for row in found] == ['', 'Dense', 'Relu', 'BatchNorm', 'Dense']
  for row in found:
    x = expected[row['name']]
    assert row['shape'] == x.shape[1:]
    units = x.reshape(7, -1)
    signal = np.mean([np.sqrt(np.mean((unit - unit.mean()) ** 2)) for unit in units.T])
    assert row['mean'] == pytest.approx(x.mean(), rel=1e-4, abs=1e-5 * x.std())
    assert row['std'] == pytest.approx(x.std(), rel=1e-4)
    assert row['signal'] == pytest.approx(signal, rel=1e-4)
    assert row['active'] == (pytest.approx((x > 0).mean()) if row['name'] == 'relu1' else None)
  assert 0 < found[2]['active'] < 1


def test_interpretation_follows_the_signal():
  assert 'may stay there' in diagnosis.interpretation(0.0114, 1000)
  assert 'ln(1,000) = 6.908' in diagnosis.interpretation(0.0114, 1000)
  assert 'from the start' in diagnosis.interpretation(0.164, 1000)
  assert 'too large' in diagnosis.interpretation(3.0, 10)


# One batch.


def test_nothing_random_is_left_and_dropout_passes_its_mean(config, monkeypatch):
  table = tuple(row for row in TABLE if row.name != 'bn1')
  config.optimizer.learning_rate = 1e-6
  experiment, state, images, labels = run_of(table, config, monkeypatch)
  views = (images - images.mean(0))[:, 1:11, 1:11].astype(np.float32)
  logits = np.asarray(AlexNet(table).apply({'params': state.params}, views), np.float64)
  log_sums = np.log(np.exp(logits).sum(1))
  expected = np.mean(log_sums - logits[np.arange(7), labels])

  first, second = (list(diagnosis.overfit(experiment, state, images, labels, 2)) for _ in range(2))
  assert first == second and [seen.step for seen in first] == [0, 1, 2]
  assert first[0].loss == pytest.approx(expected, rel=1e-5)
  assert first[0].top1_error == pytest.approx(np.mean(logits.argmax(1) != labels))


def test_what_would_hide_the_answer_is_off_and_the_rest_is_kept(config):
  config.update({'label_smoothing': 0.1, 'ema_decay': 0.9, 'grad_accum_steps': 4})
  config.optimizer.layer_lr_factors = {'conv1': ((0.0001, 0.0),)}
  before = config.to_json()
  experiment = diagnosis.one_batch_experiment(config, diagnosis.generated_store(5, 7, 12), 7)
  recipe = experiment.recipe
  assert config.to_json() == before
  assert (recipe.label_smoothing, recipe.ema_decay) == (0, 0)
  assert experiment.config.grad_accum_steps == 1
  assert not recipe.preprocessing.random_crop and not recipe.preprocessing.random_flip
  assert recipe.color_noise(0) == 0
  for step in (0, 10**6):
    rates = recipe.rates.per_parameter({'conv1': {'kernel': 0, 'bias': 0}}, step, 1.0)['conv1']
    assert rates['kernel'] == pytest.approx(0.01) and rates['bias'] == pytest.approx(0.02)


@pytest.mark.parametrize(
  'changes, images, classes, expected',
  [
    ({}, 16, 10, 0.01),  # 16 images can show 10 classes as well as 128 can
    ({}, 16, 1000, 0.01 * 16 / 128),
    ({}, 16, 100, 0.01 * 16 / 100),
    ({'batch_size': 512}, 128, 1000, 0.01 * 128 / 512),
    ({'optimizer.warmup_epochs': 1.0}, 16, 10, 0.01 * 16 / 128),
    ({'batch_size': 512, 'optimizer.base_batch_size': 256}, 16, 10, 0.02),
  ],
)
def test_rate_for_a_small_batch(config, changes, images, classes, expected):
  config.update_from_flattened_dict(changes)
  assert diagnosis.single_batch_rate(config, images, classes) == pytest.approx(expected)


@pytest.mark.parametrize(
  'losses, error, expected',
  [
    ([6.9, 2.0, 0.5], 0.0, 'learned'),
    ([6.9, 2.0, 0.5], 0.1, 'unfinished'),
    ([6.9, 2.8, 2.7], 0.5, 'plateau'),
    ([6.9, 6.8, 6.7], 1.0, 'plateau'),
    ([6.9, 2.0, 6.9], 1.0, 'unfinished'),
    ([6.9, 90.0, 1e6], 1.0, 'diverged'),
    ([6.9, 6.9, math.nan], 1.0, 'diverged'),
  ],
)
def test_verdict(losses, error, expected):
  history = [StepResult(i, loss, error) for i, loss in enumerate(losses)]
  verdict, sentence = diagnosis.judge(history, 1000, math.log(16))
  assert verdict == expected and '2' in sentence and '\n' not in sentence


def test_overfitting_ends_when_training_diverges(config, monkeypatch):
  experiment, state, images, labels = run_of(TABLE, config, monkeypatch)
  state = state.replace(params=jax.tree.map(lambda x: 1e4 * x, state.params))
  (only,) = diagnosis.overfit(experiment, state, images, labels, 5)
  assert diagnosis.has_diverged(only, 5)


# Images.


def test_photos_of_a_folder_are_taken_evenly_resized_and_cropped(tmp_path, config):
  config.data.image_size = 8
  with pytest.raises(UserError, match='--images=.*nowhere: there is no such folder'):
    diagnosis.read_folder(tmp_path / 'nowhere', 3, config.data, False)
  with pytest.raises(UserError, match='holds no'):
    diagnosis.read_folder(tmp_path, 3, config.data, False)
  for number in range(6):
    folder = tmp_path / f'class{number // 3}'
    folder.mkdir(exist_ok=True)
    Image.new('RGB', (20 + number, 12), (40 * number, 0, 0)).save(folder / f'{number}.PNG')
  (tmp_path / 'notes.txt').write_text('no image')
  few = diagnosis.read_folder(tmp_path, 3, config.data, False)
  assert few.shape == (3, 8, 8, 3) and list(few[:, 4, 4, 0]) == [0, 80, 160]
  assert len(diagnosis.read_folder(tmp_path, 50, config.data, False)) == 6
  (tmp_path / 'broken.jpg').write_bytes(b'not a JPEG')
  with pytest.raises(UserError, match='broken.jpg cannot be read'):
    diagnosis.read_folder(tmp_path, 3, config.data, False)


def test_the_batch_is_the_configs_own_or_says_that_it_is_not(config, tmp_path):
  config.data.name, config.data.dir = 'imagenet2012', str(tmp_path / 'tfds')
  _, images, labels, what = diagnosis.choose_batch(config, 4, None)
  assert len(images) == len(labels) == 4
  assert what.startswith('4 generated images: no prepared imagenet2012 at ')

  Image.new('RGB', (20, 12)).save(tmp_path / 'one.jpg')
  with pytest.raises(UserError, match='1 images of .* at least 2'):
    diagnosis.choose_batch(config, 4, str(tmp_path))
  Image.new('RGB', (20, 12)).save(tmp_path / 'two.jpg')
  store, images, labels, what = diagnosis.choose_batch(config, 4, str(tmp_path))
  assert images.shape == (2, 12, 12, 3) and list(labels) == [0, 1] and 'labels made up' in what

  config.data.source, config.data.synthetic_examples = 'synthetic', 20
  store, images, labels, what = diagnosis.choose_batch(config, 16, None)
  np.testing.assert_array_equal(images, store.train.images[:16])
  np.testing.assert_array_equal(labels, store.train.labels[:16])
  assert what == '16 training images of synthetic'


# The command.


@pytest.mark.slow
def test_the_command_diagnoses_digits(tmp_path):
  file = tmp_path / 'new' / 'digits.json'
  done = run(
    'alexnet_jax.diagnose', '--config=configs/digits.py', '--overfit_steps=90', f'--json={file}'
  )
  assert done.returncode == 0, done.stderr
  out = done.stdout
  lines = [line.split() for line in out.splitlines()]
  rows = {line[0]: line for line in lines[4:] if len(line) in (5, 6, 7)}
  assert '16 training images of digits' in out
  assert list(rows)[:3] == ['layer', 'input', 'conv1'] and rows['fc5'][1:3] == ['Dense', '10']
  assert len(rows['relu1']) == 7 and 0 < float(rows['relu1'][5]) < 1
  assert 'drop4' not in rows
  assert 'ln(10) = 2.303' in out and 'rate 0.0125 (config: 0.05, batches of 64)' in out
  assert lines[-1][0] == 'learned:'

  figures = json.loads(file.read_text())
  assert figures['config'] == 'digits' and figures['hardware'].startswith('1 x cpu')
  assert [f'{layer["signal"]:.4g}' for layer in figures['layers']] == [
    rows[layer['name']][-1] for layer in figures['layers']
  ]
  assert figures['logit_signal'] == figures['layers'][-1]['signal']
  history = figures['overfit']['history']
  assert figures['overfit']['verdict'] == 'learned'
  assert history[-1]['top1_error'] == 0 and history[-1]['loss'] < 0.2303
  assert [step['step'] for step in history] == list(range(len(history)))
