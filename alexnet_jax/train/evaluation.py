"""Error rates over a whole split: every image exactly once, over any number of views and devices."""

from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

from alexnet_jax.data.feed import eval_batches
from alexnet_jax.data.store import Split
from alexnet_jax.train import augment
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.parallel import AXIS, Devices
from alexnet_jax.train.step import make_score, make_view_probabilities

VIEW_NAMES = {1: 'centre view', 9: 'nine views', 10: 'ten views'}


class Evaluator:
  """Compiled evaluation of a net on a split.

  The softmax probabilities of the views are averaged and then scored (paper section 4.1; CHM
  worker.cu MultiviewTestWorker); the loss is that of the averaged probabilities.
  """

  def __init__(self, experiment: Experiment, split: Split, devices: Devices):
    self._split = split
    self._devices = devices
    self._batch_size = experiment.config.eval.batch_size
    self._view_probabilities = devices.view_probabilities(
        make_view_probabilities(experiment.model, experiment.recipe.preprocessing))
    self._score = devices.score(make_score(AXIS))

  def __call__(
      self,
      params: dict,
      batch_stats: dict,
      views: int,
      progress: Callable[[Iterable], Iterable] = iter,
  ) -> dict[str, float]:
    """Evaluates.

    Args:
      params, batch_stats: of the net, replicated over the devices.
      views: a key of `augment.VIEWS`.
      progress: wraps the iterator over batches, to show a bar.

    Returns:
      loss (nats per image), top1_error, top5_error (fractions; the latter only with more than 5
      classes) and count, over every image of the split exactly once.
    """
    places = jnp.asarray(augment.VIEWS[views], jnp.float32)
    totals = dict.fromkeys(('loss', 'top1_error', 'top5_error', 'count'), 0.0)
    batches = eval_batches(
        self._split, batch_size=self._batch_size,
        process_index=self._devices.process_index, process_count=self._devices.process_count)
    for batch in progress(self._devices.stream(batches)):
      probabilities = sum(
          self._view_probabilities(params, batch_stats, batch['image'], place)
          for place in places) / views
      sums = self._score(probabilities, batch['label'], batch['mask'])
      for name, value in sums.items():
        totals[name] += float(value)
    count = totals.pop('count')
    if count != len(self._split.labels):
      raise AssertionError(f'evaluated {count:g} images of {len(self._split.labels)}')
    results = {name: total / count for name, total in totals.items()}
    if np.prod(probabilities.shape[2:]) <= 5:
      del results['top5_error']
    return {**results, 'count': int(count)}
