"""The figures of docs/results.md follow from the predictions in docs/predictions."""

import re

import numpy as np
import pytest
from helpers.commands import ROOT

from alexnet_jax.errors import UserError
from alexnet_jax.results import scores
from alexnet_jax.run.predictions import SplitProbabilities, write_top5
from alexnet_jax.weights.load import load

FOLDER = ROOT / 'docs/predictions'
FILES = sorted(path for path in FOLDER.glob('*/*.npz') if path.name != 'labels.npz')


def errors(path) -> tuple[str, str]:
  """Top-1 and top-5 error as documents write them."""
  label, top5 = np.load(path.with_name('labels.npz'))['label'], np.load(path)['top5']
  found = top5 == label[:, None]
  return tuple(f'{100 * (1 - found[:, :k].any(1).mean()):.2f} %' for k in (1, 5))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_figures_are_those_of_the_predictions(path):
  lines = (ROOT / 'docs/results.md').read_text(encoding='utf-8').splitlines()
  rows = [line for line in lines if f'({path.relative_to(FOLDER.parent)})' in line]
  assert rows, 'no figure cites it'
  for row in rows:
    assert all(re.search(rf'(?<![\d.]){error}', row) for error in errors(path)), row
  top5 = np.load(path)['top5']
  assert top5.dtype == np.uint8 and path.stat().st_size < 100_000
  assert (np.diff(np.sort(top5), axis=1) > 0).all()  # five different classes
  assert re.fullmatch('[0-9a-f]{64}', str(np.load(path.with_name('labels.npz'))['names_sha256']))


def test_the_packaged_net_has_the_errors_that_it_states():
  one, five = errors(FOLDER / 'cifar10/18pct.npz')
  assert load('cifar10').source.endswith(f': {one} top-1, {five} top-5')


def test_top5_gives_the_errors_of_the_probabilities(tmp_path):
  random = np.random.default_rng(0)
  probabilities = random.random((500, 300)).round(2).astype(np.float32)  # with many ties
  label = random.integers(0, 300, 500).astype(np.int32)
  probabilities[np.arange(500), label] = random.integers(96, 102, 500) / np.float32(100)
  probabilities[:20] = np.nan
  names = [f'{number}.png' for number in range(500)]
  write_top5(tmp_path / 'a.npz', SplitProbabilities(label, probabilities), names)
  saved, labels = np.load(tmp_path / 'a.npz')['top5'], np.load(tmp_path / 'labels.npz')
  assert saved.dtype == labels['label'].dtype == np.uint16 and (labels['label'] == label).all()
  found = saved == label[:, None]
  assert 0.1 < found[:, :1].any(1).mean() < found.any(1).mean() < 0.9
  for k in (1, 5):
    assert (found[:, :k].any(1) == ~scores.is_error(probabilities, label, k)).all()
  # A second run of the same images, and one of others.
  write_top5(tmp_path / 'b.npz', SplitProbabilities(label, probabilities), names)
  for other in (
    (SplitProbabilities(label[::-1], probabilities), names),
    (
      SplitProbabilities(label, probabilities),
      names[::-1],
    ),
  ):
    with pytest.raises(UserError, match=r'labels.npz is of other images: give --top5'):
      write_top5(tmp_path / 'c.npz', *other)
  assert not (tmp_path / 'c.npz').exists()
