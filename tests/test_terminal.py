"""What commands write for people."""

import pytest

from alexnet_jax.terminal import did_you_mean


@pytest.mark.parametrize(
  'word, suggestion',
  [
    ('optimizer.lerning_rate', 'optimizer.learning_rate'),
    ('optimizer.lr', 'optimizer.learning_rate'),
    ('lr', 'optimizer.learning_rate'),
    ('seeds', 'seed'),
    ('eval.lr', 'eval.views'),
    ('qqq', None),
  ],
)
def test_suggestion(word, suggestion):
  known = ['seed', 'optimizer.learning_rate', 'optimizer.momentum', 'eval.views', 'loss.ratio']
  assert did_you_mean(word, known) == (f'did you mean {suggestion}?' if suggestion else '')
