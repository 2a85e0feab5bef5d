"""Figures of a run: valid, of the expected size, and right to the pixel where that can be said."""

import runpy

import matplotlib
import numpy as np
import pytest
from PIL import Image

from alexnet_jax.results.confusion import confusion_matrix
from alexnet_jax.results.figures import filter_grid, learning_curves
from alexnet_jax.train import finish, loop
from alexnet_jax.weights.load import load


def _records(count, per_epoch, *, drops=()):
  rng = np.random.default_rng(0)
  records = []
  for i in range(1, count + 1):
    loss = 6.9 * np.exp(-3 * i / count) * np.exp(0.1 * rng.normal())
    rate = 0.01 * 0.1 ** sum(i >= drop * count for drop in drops)
    records.append(
      {
        'step': 10 * i,
        'epoch': i / per_epoch,
        'train/loss': loss,
        'train/top1_error': min(1, loss / 7),
        'learning_rate': rate,
      }
    )
    if i % per_epoch == 0:
      record = {'step': 10 * i, 'eval/loss': loss, 'eval/top1_error': loss / 7}
      records.append({**record, 'eval/top5_error': (loss / 7) ** 2})
  return records


def _pixels(path):
  with Image.open(path) as image:
    image.load()
    assert image.format == 'PNG'
    return np.asarray(image.convert('RGB'))


@pytest.mark.parametrize(
  'records',
  [
    [],
    [{'step': 0, 'epoch': 0.0, 'train/loss': 2.3}],
    [{'step': 5, 'epoch': 0.5, 'train/loss': float('nan'), 'train/top1_error': 0.0}],
    [{'step': 5, 'epoch': 0.5, 'eval/top1_error': 0.0, 'learning_rate': 0.1}],
    _records(10, 1),
    _records(10_000, 100, drops=(0.3, 0.6, 0.62, 0.64)),
  ],
  ids=['none', 'step 0', 'nan', 'zero', 'ten', 'ten thousand'],
)
def test_learning_curves(tmp_path, records):
  path = tmp_path / 'figures' / 'curves.png'
  learning_curves(records, path, 'A run')
  assert _pixels(path).shape == (800, 1920, 3)
  assert [file.name for file in path.parent.iterdir()] == ['curves.png']


def test_learning_rate_drops_are_marked(tmp_path):
  """A vertical line of the mark's gray stands at each drop, in both panels, and nowhere else."""
  marks = []
  for drops in ((), (0.5,), (0.25, 0.5, 0.75)):
    learning_curves(_records(400, 100, drops=drops), tmp_path / 'c.png')
    pixels = _pixels(tmp_path / 'c.png')[200:700].astype(int)
    gray = np.abs(pixels - (0x6B, 0x76, 0x82)).max(axis=2) < 40
    columns = np.flatnonzero(gray.mean(axis=0) > 0.35)
    marks.append(int((np.diff(columns, prepend=-9) > 1).sum()))
  assert marks == [0, 2, 6]


@pytest.mark.parametrize(('towers', 'size', 'channels', 'count'), [(2, 11, 3, 96), (1, 5, 1, 20)])
def test_filter_grid_is_right_to_the_pixel(tmp_path, towers, size, channels, count):
  kernel = np.random.default_rng(1).normal(size=(size, size, channels, count)).astype(np.float32)
  kernel[..., 3] = 0
  path = tmp_path / 'filters.png'
  filter_grid(kernel, path, towers=towers)
  pixels = _pixels(path)

  scale, gap, margin, tower_gap = {11: 8, 5: 18}[size], 6, 40, 28
  tile = size * scale
  per_tower = count // towers
  rows = -(-per_tower // 16)
  block = rows * (tile + gap) - gap
  height = 2 * margin + towers * block + (towers - 1) * tower_gap
  assert pixels.shape == (height, 2 * margin + 16 * (tile + gap) - gap, 3)
  outside = np.ones(pixels.shape[:2], bool)
  for i in range(count):
    tower, place = divmod(i, per_tower)
    top = margin + tower * (block + tower_gap) + place // 16 * (tile + gap)
    left = margin + place % 16 * (tile + gap)
    weights = kernel[..., i].astype(np.float64)
    level = 127.5 + 127.5 * weights / (np.abs(weights).max() or 1)
    expected = np.kron(np.rint(level), np.ones((scale, scale, 1)))
    shown = pixels[top : top + tile, left : left + tile]
    np.testing.assert_array_equal(shown, np.broadcast_to(expected, shown.shape))
    outside[top : top + tile, left : left + tile] = False
  assert (pixels[outside] == 255).all()


def test_names_in_any_script(tmp_path):
  """Nothing is warned of, whatever fonts are installed, and the user's settings stay."""
  before = matplotlib.rcParams.copy()
  names = ['猫', 'caf\udce9', 'a$b$c', 'tab\t', 'plain']
  confusion_matrix(np.eye(5, dtype=int), names, tmp_path / 'confusion.png', 'title 猫 $\udce9')
  learning_curves([], tmp_path / 'curves.png', 'title 猫 $\udce9')
  filter_grid(np.ones((3, 3, 3, 2)), tmp_path / 'filters.png', title='title 猫 $\udce9')
  for name in ('confusion', 'curves', 'filters'):
    assert (_pixels(tmp_path / f'{name}.png') < 128).any()
  assert matplotlib.rcParams.copy() == before


@pytest.mark.slow
def test_figures_come_last(tmp_path, monkeypatch):
  """One that fails is a line of the log; on gray images the kernels are drawn as they respond."""
  workdir = tmp_path / 'run'

  def fail(*_):
    assert {'results.json', 'predictions-last-1.npz'} <= {file.name for file in workdir.iterdir()}
    raise RuntimeError('two\nlines')

  monkeypatch.setattr(finish, 'confusion_matrix', fail)
  config = runpy.run_path('configs/digits.py')['get_config']()
  config.epochs = 0.2
  loop.train(config, workdir, command='test')
  log = (workdir / 'train.log').read_text().splitlines()
  (warning,) = [line for line in log if 'warning' in line]
  assert warning.endswith('not all figures are drawn: RuntimeError: two lines')
  weights = load(workdir, checkpoint='last')
  # On a gray pixel v the convolution gives v times this, since all channels are scaled alike.
  kernel = weights.variables['params']['conv1']['kernel'].sum(2, keepdims=True)
  title = 'run: kernels of conv1 on gray images'
  filter_grid(kernel, tmp_path / 'wanted.png', title=title)
  drawn = _pixels(workdir / 'figures' / 'first_layer_kernels.png').astype(int)
  assert np.abs(drawn - _pixels(tmp_path / 'wanted.png')).max() <= 1  # the sum is rounded otherwise
