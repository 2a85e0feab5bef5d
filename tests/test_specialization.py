"""Color in the kernels of the first layer: the index, the test of its halves, and the command."""

import runpy

import numpy as np
import pytest
from helpers.commands import error_line, run
from helpers.trained import digits_config, random_variables, write_run
from PIL import Image

from alexnet_jax.inference.specialization import read_history
from alexnet_jax.model import layers, nets
from alexnet_jax.results.chroma import ChromaHistory, chroma_index, compare_halves, draw_histories
from alexnet_jax.train import loop
from alexnet_jax.weights.run_folder import read_variables

GROUPED = (
  layers.Conv('conv1', 8, 5, stride=2, init=0.03),
  layers.Relu('relu1'),
  layers.Conv('conv2', 8, 3, groups=2, init=0.05),
  layers.Relu('relu2'),
  layers.Dense('fc3', 10),
)


def halves_apart(seed=0):
  """96 kernels: noise, then noise with a color that no gray image excites."""
  kernels = np.random.default_rng(seed).normal(size=(11, 11, 3, 96))
  kernels[..., 48:] += 2 * np.array([1, -1, 0])[:, None]
  return kernels


def test_index_of_hand_made_kernels():
  place = np.random.default_rng(0).normal(size=(4, 5, 1))
  kernels = [
    place * [1, 1, 1],
    place * [1, -1, 0],
    place * [1, 1, -2],
    place * [1, 0, 0],  # of its length sqrt(1/3) is along gray
    place * [0, 0, 1],
    place * 0 + [1, 1, 0],
    place * [0, 0, 0],
  ]
  kernels = np.stack(kernels, axis=-1)
  expected = [0, 1, 1, 2 / 3, 2 / 3, 1 / 3, 0]
  np.testing.assert_allclose(chroma_index(kernels), expected, atol=1e-12)
  np.testing.assert_allclose(chroma_index(-1e-3 * kernels), expected, atol=1e-12)


def test_index_is_the_part_across_the_gray_axis():
  """Against projections in float64, from float32 kernels; noise has 2/3."""
  kernels = np.random.default_rng(1).normal(size=(11, 11, 3, 96)).astype(np.float32)
  gray = np.ones(3) / np.sqrt(3)
  for number, found in enumerate(chroma_index(kernels)):
    pixels = kernels[..., number].reshape(-1, 3).astype(np.float64)
    along = (pixels @ gray)[:, None] * gray
    assert found == pytest.approx(np.sum((pixels - along) ** 2) / np.sum(pixels**2), rel=1e-12)
  # Of noise it is Beta(121, 60.5), by 242 weights across and 121 along gray.
  index, deviation = chroma_index(kernels), np.sqrt(2 / 9 / 182.5)
  assert index.mean() == pytest.approx(2 / 3, abs=4 * deviation / np.sqrt(96))
  assert index.std() == pytest.approx(deviation, rel=0.3)


def test_p_shows_towers_that_differ_and_only_those():
  index = chroma_index(halves_apart())
  apart = compare_halves(index)
  assert apart.difference > 0.1 and apart.p == pytest.approx(2 / 10_001)  # the least that there is
  swapped = compare_halves(index[::-1])
  assert swapped.difference == pytest.approx(-apart.difference) and swapped.p == apart.p
  mixed = compare_halves(np.concatenate([index[::2], index[1::2]]))
  assert mixed.p > 0.05
  assert compare_halves(index) == apart


def test_figure_of_grouped_and_ungrouped_runs(tmp_path):
  kernels = {0.0: halves_apart(1)[..., ::-1], 1.0: halves_apart(2)}
  tests = {e: compare_halves(chroma_index(kernel), 100) for e, kernel in kernels.items()}
  histories = [ChromaHistory(f'$run {g}', 'net', g, kernels, tests) for g in (False, True)]
  for number, shown in enumerate((histories, histories[:1])):
    draw_histories(shown, tmp_path / f'{number}.png')
    with Image.open(tmp_path / f'{number}.png') as image:
      assert image.format == 'PNG' and image.size[0] == 1920
    assert (tmp_path / f'{number}.png').stat().st_size < 200_000


@pytest.mark.slow
def test_a_run_keeps_the_kernels_of_its_evaluations(tmp_path, monkeypatch):
  monkeypatch.setitem(nets.NETS, 'digits', lambda classes: GROUPED)
  config = runpy.run_path('configs/digits.py')['get_config']()
  config.update({'epochs': 1.0, 'seed': 5})
  config.eval.every_epochs = 0.5
  made, make = [], loop.make_experiment
  monkeypatch.setattr(loop, 'make_experiment', lambda *words: made.append(make(*words)) or made[-1])
  loop.train(config, tmp_path / 'run', command='test')

  history = read_history(tmp_path / 'run')
  assert history.grouped
  step, variables, _ = read_variables(tmp_path / 'run', 'last')
  steps = sorted(int(path.stem) for path in (tmp_path / 'run' / 'first_layer').iterdir())
  assert len(steps) == 2 and steps[-1] == step
  calendar = made[0].calendar
  assert list(history.tests) == [0, *map(calendar.epoch_of, steps)]
  scale = made[0].recipe.preprocessing.scale[:, None]
  initial = np.asarray(made[0].initial_state().params['conv1']['kernel'])
  np.testing.assert_array_equal(history.kernels[0], initial * scale)
  last = variables['params']['conv1']['kernel'].astype(np.float16)
  np.testing.assert_array_equal(history.last, last * scale)
  assert not np.array_equal(history.last, history.kernels[calendar.epoch_of(steps[0])])


@pytest.mark.slow
def test_the_command(tmp_path):
  """A run that kept no kernels has its beginning and its last checkpoint."""
  variables = random_variables('digits', 7, 28)
  write_run(tmp_path / 'run', digits_config(), variables, kind='last', step=640)
  workdir = f'--workdir={tmp_path / "run"}'
  before = sorted(tmp_path.rglob('*'))
  ended = run('alexnet_jax.specialization', workdir, f'--figure={tmp_path / "new" / "a.png"}')
  assert ended.returncode == 0, ended.stderr
  heading, *rows, figure = ended.stdout.splitlines()
  assert heading.split()[-1] == 'p' and 'arbitrary' in rows[0] and figure.endswith('a.png')
  scaled = variables['params']['conv1']['kernel'] * np.array([[0.01], [0.02], [0.03]])
  last = compare_halves(chroma_index(scaled))
  assert rows[0].split()[-5] == '0.00'
  expected = [f'{640 * 128 / 700:.2f}', f'{last.first:.3f}', f'{last.second:.3f}']
  assert rows[1].split()[-5:-2] == expected and len(rows) == 2
  assert {*tmp_path.rglob('*')} - {*before} == {tmp_path / 'new', tmp_path / 'new' / 'a.png'}

  refused = run('alexnet_jax.specialization', workdir, f'--figure={tmp_path}')
  assert f'{tmp_path} cannot be written: Is a directory' in error_line(refused)

  assert '--workdir is missing' in error_line(run('alexnet_jax.specialization'))
  refused = run('alexnet_jax.specialization', f'--workdir={tmp_path / "new"}')
  assert 'holds no run' in error_line(refused)
