"""Commands as a user gives them, from images to results."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.commands import error_line, run
from helpers.tiny_data import write_photos

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('digits') / 'run'
  finished = run(
    'alexnet_jax.main', '--config=configs/digits.py', '--config.epochs=4', f'--workdir={workdir}'
  )
  assert finished.returncode == 0, finished.stderr
  return workdir, finished


def test_digits_are_learnt_and_everything_is_written(digits):
  workdir, finished = digits
  results = json.loads((workdir / 'results.json').read_text())
  assert results['eval/top1_error'] < 0.1  # ten classes: guessing errs in 0.9
  assert results['evaluated_images'] == 359
  assert results['epoch'] == pytest.approx(4, abs=0.05)
  for name in (
    'config.json',
    'env.json',
    'train.log',
    'metrics.jsonl',
    'metrics.csv',
    'figures/learning_curves.png',
    'figures/first_layer_kernels.png',
  ):
    assert (workdir / name).stat().st_size > 100, name
  assert any(workdir.glob('events.*'))
  assert re.search(r'process 1/1, 1 of 1 devices, cpu', finished.stderr)
  assert 'top-1 error' in finished.stderr


def test_evaluate_agrees_with_the_run(digits):
  workdir, _ = digits
  results = json.loads((workdir / 'results.json').read_text())
  finished = run('alexnet_jax.evaluate', f'--workdir={workdir}')
  assert finished.returncode == 0, finished.stderr
  evaluation = json.loads((workdir / 'evaluation-last-1.json').read_text())
  (again,) = evaluation['results'].values()
  assert again['top1_error'] == pytest.approx(results['eval/top1_error'], abs=1e-9)
  assert again['loss'] == pytest.approx(results['eval/loss'], rel=1e-5)
  assert evaluation['evaluated_images'] == 359
  low, high = again['top1_error_interval']
  assert low <= again['top1_error'] <= high
  with np.load(workdir / 'predictions-last-1.npz', allow_pickle=False) as saved:
    wrong = saved['probabilities'].argmax(1) != saved['label']
  assert wrong.mean() == pytest.approx(again['top1_error'])


def test_ensemble_averages_probabilities(digits, tmp_path):
  workdir, _ = digits
  other = tmp_path / 'other'
  finished = run(
    'alexnet_jax.main',
    '--config=configs/digits.py',
    '--config.epochs=1',
    '--config.seed=1',
    f'--workdir={other}',
  )
  assert finished.returncode == 0, finished.stderr
  command = ('alexnet_jax.evaluate', f'--ensemble={workdir},{other}')
  config = json.loads((other / 'config.json').read_text())
  config['eval']['final_views'] = 9
  (other / 'config.json').write_text(json.dumps(config))
  mixed_views = error_line(run(*command))
  assert f'{workdir} 1, {other} 9' in mixed_views and '--views=1, 9 or 10' in mixed_views
  finished = run(*command, '--views=1')
  assert finished.returncode == 0, finished.stderr

  def saved(folder, name):
    with np.load(folder / name, allow_pickle=False) as file:
      return file['probabilities'], file['label']

  (one, label), (two, _) = (saved(folder, 'predictions-last-1.npz') for folder in (workdir, other))
  mean, mean_label = saved(workdir, 'predictions-ensemble-last-1.npz')
  assert np.array_equal(label, mean_label)
  np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-5)
  results = json.loads((workdir / 'evaluation-ensemble-last-1.json').read_text())['results']
  *_, ensemble = results.values()
  assert ensemble['top1_error'] == pytest.approx((mean.argmax(1) != label).mean())
  again = workdir.parent / '.' / workdir.name / '..' / workdir.name
  refused = run('alexnet_jax.evaluate', f'--ensemble={workdir},{again}')
  assert 'more than once' in error_line(refused)


def test_evaluate_where_nothing_can_be_written(digits, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(digits[0], workdir)
  (workdir / 'evaluation-best-1.json').mkdir()  # permissions do not stop root
  finished = run('alexnet_jax.evaluate', f'--workdir={workdir}', '--checkpoint=best')
  assert finished.returncode == 0 and 'top1_error' in finished.stdout
  warning = finished.stderr.splitlines()[-1]
  assert warning.startswith(f'warning: the results are not saved in {workdir}: ')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return write_photos(tmp_path_factory.mktemp('photos') / 'photos', 20)


def folder_run(photos, workdir, *flags):
  return run(
    'alexnet_jax.main',
    f'--config=configs/folder.py:{photos}',
    '--config.model.net=digits',
    '--config.data.image_size=32',
    '--config.input.crop=28',
    '--config.input.normalization=standardize',
    '--config.input.scale=1.0',
    '--config.batch_size=16',
    '--config.eval.batch_size=8',
    '--config.epochs=8',
    f'--workdir={workdir}',
    *flags,
  )


def test_folder_of_images_trains(photos, tmp_path):
  finished = folder_run(photos, tmp_path / 'run')
  assert finished.returncode == 0, finished.stderr
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['evaluated_images'] == 8
  assert results['eval/top1_error'] == 0
  assert 'ten_views/top1_error' in results
  assert (photos.parent / 'photos-stores' / 'photos-32-crop' / 'meta.json').exists()


def test_a_broken_photo_and_an_empty_class_are_named(photos, tmp_path):
  broken, empty = photos / 'red' / 'broken.jpg', photos / 'green'
  broken.write_bytes((photos / 'red' / '0.png').read_bytes()[:300])
  try:
    store = f'--config.data.store={tmp_path / "store"}'
    assert 'broken.jpg' in error_line(folder_run(photos, tmp_path / 'run', store))
    empty.mkdir()
    assert 'green' in error_line(folder_run(photos, tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
  finally:
    broken.unlink()
    empty.rmdir()


def test_imagenet_plan_needs_no_data():
  finished = run('alexnet_jax.main', '--config=configs/imagenet.py', '--dry_run')
  assert finished.returncode == 0, finished.stderr
  for fact in (
    '60,965,224 parameters',
    '724,406,816 MACs',
    '1,281,167 training',
    '910,830',
    'epoch 25',
    'epoch 51',
    'epoch 79',
    'conv1',
    '488 MB',
  ):
    assert fact in finished.stdout, fact


def test_full_net_trains_on_generated_images(tmp_path):
  finished = run(
    'alexnet_jax.main',
    '--config=configs/imagenet.py',
    '--config.data.source=synthetic',
    '--config.data.num_classes=8',
    '--config.data.synthetic_examples=16',
    '--config.batch_size=8',
    '--config.eval.batch_size=8',
    '--config.epochs=1',
    '--config.checkpoint.max_to_keep=1',
    f'--workdir={tmp_path / "run"}',
  )
  assert finished.returncode == 0, finished.stderr
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['evaluated_images'] == 8 and 'ten_views/top5_error' in results


def test_diverging_run_is_stopped_with_causes(tmp_path):
  finished = run(
    'alexnet_jax.main',
    '--config=configs/digits.py',
    '--config.optimizer.learning_rate=1e30',
    '--config.guard.max_nonfinite_steps=3',
    '--config.log.every_steps=5',
    f'--workdir={tmp_path / "r"}',
  )
  assert finished.returncode == 3, finished.stderr
  assert 'not finite' in finished.stderr.strip().splitlines()[-1]
