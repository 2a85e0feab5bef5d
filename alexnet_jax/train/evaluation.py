"""Evaluation: the probabilities of every validation image, averaged over views."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data.feed import eval_batches
from alexnet_jax.data.store import Split
from alexnet_jax.model.preprocessing import VIEWS
from alexnet_jax.run.predictions import SplitProbabilities
from alexnet_jax.train import processes
from alexnet_jax.train.devices import Devices, to_host
from alexnet_jax.train.experiment import Experiment


class Evaluator:
  """Evaluates a net on a split, compiled once.

  The softmax probabilities of the views are averaged (paper section 4.1; CHM worker.cu
  MultiviewTestWorker).
  """

  def __init__(self, experiment: Experiment, split: Split, devices: Devices):
    self._split = split
    self._devices = devices
    self._batch_size = experiment.config.eval.batch_size
    model, preprocessing = experiment.model, experiment.recipe.preprocessing

    def view_probabilities(params, batch_stats, images, view):
      views = preprocessing.test_view(images, view)
      return jax.nn.softmax(model.apply({'params': params, 'batch_stats': batch_stats}, views))

    self._view_probabilities = devices.pmap(
      view_probabilities,
      in_axes=(None, None, 0, None),
      out_axes=0,
      cache=not model.onednn,
    )

  def predictions(
    self,
    params: dict,
    batch_stats: dict,
    views: int,
    advance: Callable[[int], None] = lambda images: None,
  ) -> SplitProbabilities:
    """Predicts every image of the split; to be called by every process.

    Args:
      params, batch_stats: of the net, replicated.
      views: number of views, a key of `VIEWS`.
      advance: called after each batch with its number of images.

    Returns:
      Labels and probabilities, in the order of the split's rows.
    """
    places = jnp.asarray(VIEWS[views], jnp.float32)
    batches = eval_batches(
      self._split,
      batch_size=self._batch_size,
      process_index=self._devices.process_index,
      process_count=self._devices.process_count,
    )
    parts = []
    with batches:
      for batch in self._devices.stream(batches):
        images = batch['image']
        by_view = (self._view_probabilities(params, batch_stats, images, place) for place in places)
        arrays = (batch['row'], batch['label'], sum(by_view) / views)
        parts.append([to_host(a).reshape(-1, *a.shape[2:]) for a in arrays])
        advance(int((parts[-1][0] >= 0).sum()) * self._devices.process_count)
    gathered = [processes.gather(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)]
    row, label, probabilities = (array[gathered[0] >= 0] for array in gathered)  # -1: padding
    if len(np.unique(row)) != len(self._split.labels):
      raise AssertionError(f'evaluated {len(np.unique(row))} images of {len(self._split.labels)}')
    order = np.argsort(row)
    return SplitProbabilities(label[order], probabilities[order])
