"""The nets that come with the package: found by name, told from files, and what they say."""

import re
from pathlib import Path

import pytest
from helpers.commands import ROOT, error_line, run
from helpers.trained import digits_net

from alexnet_jax import Predictor
from alexnet_jax.errors import UserError
from alexnet_jax.weights.load import load
from alexnet_jax.weights.save import save

PACKAGED = ROOT / 'alexnet_jax/weights/packaged'


def test_it_knows_a_drawing_of_a_ship(tmp_path, monkeypatch):
  """Which takes its mean image and its order of colors and classes."""
  monkeypatch.chdir(tmp_path)
  found = Predictor('cifar10')(ROOT / 'docs/images/ship.png')
  assert found.classes[0] == 'ship' and found.probabilities[0] > 0.9


def test_it_says_where_it_comes_from_and_its_error(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert (PACKAGED / 'cifar10.npz').stat().st_size < 500_000
  net = load('cifar10')
  errors = re.search(r'([\d.]+ %) top-1, ([\d.]+ %) top-5', net.source).groups()
  what = re.match(r'configs/cifar10.py:18pct, (.+), seed 0', net.source).group(1)
  (row,) = re.findall(r'^\| `cifar10` .*', (PACKAGED / 'README.md').read_text(), re.MULTILINE)
  assert row.endswith(f'| {errors[0]} | {errors[1]} |') and what in row
  assert net.net == 'cifar_18pct'


def test_what_lies_in_the_folder_wins(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  save(digits_net(), Path('other.npz'))
  Path('other.npz').rename('cifar10')
  assert [load('cifar10').net, load(Path('cifar10')).net] == ['digits'] * 2
  said = capsys.readouterr().err
  assert said == f'note: {tmp_path}/cifar10 is used, not the net of that name in the package\n'
  Path('cifar10').unlink()
  assert load('cifar10').net == 'cifar_18pct'
  Path('cifar10').mkdir()
  with pytest.raises(UserError, match='cifar10'):  # a folder without a run
    load('cifar10')


def test_unknown_names_list_what_there_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='cifar100 does not exist: .*; or a net .* package: cifar10$'):
    load('cifar100')


@pytest.mark.slow
def test_convert_writes_what_an_npz_is_to_say_of_itself(tmp_path):
  done = run('alexnet_jax.convert', 'cifar10', 'a.npz', '--source=mine, 5 %', folder=tmp_path)
  assert done.returncode == 0, done.stderr
  assert '\nmine, 5 %: net cifar_18pct, 10 classes, airplane to truck; ' in done.stdout
  assert load(tmp_path / 'a.npz').source == 'mine, 5 %'
  refused = run('alexnet_jax.convert', 'cifar10', 'a.pth', '--source=mine', folder=tmp_path)
  assert error_line(refused).endswith('a.pth cannot hold that, only an .npz can')
