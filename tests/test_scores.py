"""Scores of predictions against scikit-learn and hand-made cases."""

import numpy as np
import pytest
from sklearn import metrics

from alexnet_jax.results import scores


@pytest.fixture
def predictions():
  random = np.random.default_rng(0)
  logits = random.normal(size=(500, 12))
  label = random.integers(0, 12, 500).astype(np.int32)
  logits[np.arange(500), label] += 1.5
  exponentials = np.exp(logits)
  return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32), label


def test_errors_agree_with_scikit_learn(predictions):
  """Of five classes there is no top-5 error."""
  probabilities, label = predictions
  found = scores.compute_metrics(probabilities, label)
  classes = np.arange(12)
  assert found['top1_error'] == pytest.approx(
    1 - metrics.top_k_accuracy_score(label, probabilities, k=1, labels=classes)
  )
  assert found['top5_error'] == pytest.approx(
    1 - metrics.top_k_accuracy_score(label, probabilities, k=5, labels=classes)
  )
  normalized = probabilities.astype(np.float64)
  normalized /= normalized.sum(1, keepdims=True)
  expected = metrics.log_loss(label, normalized, labels=classes)
  assert found['loss'] == pytest.approx(expected, rel=1e-5)
  assert 'top5_error' not in scores.compute_metrics(np.eye(5, dtype=np.float32), np.arange(5))


def test_ties_and_nan_are_errors():
  same = np.full((1, 6), 1 / 6, np.float32)
  assert scores.is_error(same, np.array([2]), 1).all()
  assert scores.is_error(same, np.array([2]), 5).all()
  assert scores.is_error(np.full((1, 6), np.nan), np.array([2]), 5).all()
  one_above = np.array([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]])
  assert not scores.is_error(one_above, np.array([0]), 1).any()
  assert scores.is_error(one_above, np.array([1]), 1).all()
  assert not scores.is_error(one_above, np.array([4]), 5).any()
  assert scores.is_error(one_above, np.array([5]), 5).all()


@pytest.mark.parametrize(
  'wrongs, images, low, high',
  [
    # Of none, z^2 / (n + z^2) with z = 1.959964 may still be wrong; of all, as many right.
    (0, 36, 0.0, 3.841459 / 39.841459),
    (36, 36, 36 / 39.841459, 1.0),
    (0, 10_000, 0.0, 3.841459 / 10_003.841459),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_interval_of_an_error(wrongs, images, low, high):
  assert scores.error_interval(wrongs, images) == pytest.approx((low, high), abs=5e-5)


def test_worst_classes_name_what_they_are_taken_for():
  label = np.array([0, 0, 1, 1, 2, 2])
  guesses = np.array([0, 0, 2, 2, 2, 0])
  rows = scores.worst_classes(np.eye(3)[guesses] * 0.9 + 0.03, label, ('cat', 'dog', 'fox'), 2)
  assert rows == [('dog', 2, 1.0, 'fox'), ('fox', 2, 0.5, 'cat')]


def test_confusions_agree_with_scikit_learn():
  random = np.random.default_rng(0)
  probabilities = random.random((200, 6))
  labels = random.integers(0, 5, 200)  # no image of the last class
  expected = metrics.confusion_matrix(labels, probabilities.argmax(1), labels=range(6))
  np.testing.assert_array_equal(scores.confusion(probabilities, labels), expected)
