"""Error rates over a whole split: every image once, over any number of views and devices."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from alexnet_jax.data.feed import eval_batches
from alexnet_jax.data.store import Split
from alexnet_jax.model import preprocessing
from alexnet_jax.run.predictions import SplitProbabilities
from alexnet_jax.train import processes
from alexnet_jax.train.devices import AXIS, Devices, to_host
from alexnet_jax.train.experiment import Experiment
from alexnet_jax.train.step import make_score, make_view_probabilities


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
      make_view_probabilities(experiment.model, experiment.recipe.preprocessing),
      cache=not experiment.model.onednn,
    )
    self._score = devices.score(make_score(AXIS))

  def __call__(
    self,
    params: dict,
    batch_stats: dict,
    views: int,
    advance: Callable[[int], None] = lambda images: None,
  ) -> dict[str, float]:
    """Evaluates.

    Args:
      params, batch_stats: of the net, replicated over the devices.
      views: a key of `preprocessing.VIEWS`.
      advance: told the number of images just done, to show progress.

    Returns:
      loss (nats per image), top1_error, top5_error (fractions; the latter only with more than 5
      classes) and count, over every image of the split exactly once.
    """
    totals = dict.fromkeys(('loss', 'top1_error', 'top5_error', 'count'), 0.0)
    classes = 0
    for batch, probabilities in self._probabilities(params, batch_stats, views):
      sums = self._score(probabilities, batch['label'], batch['mask'])
      for name, value in sums.items():
        totals[name] += float(value)
      classes = probabilities.shape[-1]
      advance(int(sums['count']))
    count = totals.pop('count')
    self._check_count(count)
    results = {name: total / count for name, total in totals.items()}
    if classes <= 5:
      del results['top5_error']
    return {**results, 'count': int(count)}

  def predictions(
    self,
    params: dict,
    batch_stats: dict,
    views: int,
    advance: Callable[[int], None] = lambda images: None,
  ) -> SplitProbabilities:
    """The probabilities of every image, in the order of the split's rows; arguments as above."""
    found = []
    for batch, probabilities in self._probabilities(params, batch_stats, views):
      arrays = (batch['row'], batch['label'], probabilities)
      found.append([to_host(a).reshape(-1, *a.shape[2:]) for a in arrays])
      advance(int((found[-1][0] >= 0).sum()) * self._devices.process_count)
    whole = [processes.gather(np.concatenate(arrays)) for arrays in zip(*found, strict=True)]
    row, label, probabilities = (array[whole[0] >= 0] for array in whole)  # -1: padding
    self._check_count(len(np.unique(row)))
    order = np.argsort(row)
    return SplitProbabilities(label[order], probabilities[order])

  def _probabilities(self, params, batch_stats, views: int):
    """Yields (batch, mean probabilities over the views) with a device axis."""
    places = jnp.asarray(preprocessing.VIEWS[views], jnp.float32)
    batches = eval_batches(
      self._split,
      batch_size=self._batch_size,
      process_index=self._devices.process_index,
      process_count=self._devices.process_count,
    )
    with batches:
      for batch in self._devices.stream(batches):
        yield (
          batch,
          sum(
            self._view_probabilities(params, batch_stats, batch['image'], place) for place in places
          )
          / views,
        )

  def _check_count(self, count: float) -> None:
    if count != len(self._split.labels):
      raise AssertionError(f'evaluated {count:g} images of {len(self._split.labels)}')
