"""A trained net applied to images, as a library.

predictor = Predictor('runs/digits')  # the folder of a run, or a file of weights
print(predictor('a.png').classes[0])
for prediction in predictor(['a.png', 'b.png']):
  print(prediction.name, prediction.classes[0], prediction.probabilities[0])
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import imagenet, images
from alexnet_jax.errors import UserError
from alexnet_jax.inference.image_predictions import ImagePrediction
from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.preprocessing import VIEWS
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.terminal import did_you_mean
from alexnet_jax.weights.load import load

_BATCH_SIZE = 128


class Predictor:
  """Applies a trained net to images, decoded as in training, on one device.

  Attributes:
    weights: the trained net.
    table: its layers.
    last_hidden: name of the layer whose outputs the logits are computed from, and by which images
      are compared in paper section 6.1.
  """

  def __init__(
    self, weights: str | os.PathLike | Pretrained, *, views: int = 1, batch_size: int = _BATCH_SIZE
  ):
    """Loads the net; it is compiled at the first call.

    Args:
      weights: a file, the folder of a run, or loaded weights.
      views: 1 (the center), 9 or 10, over which probabilities and features are averaged.
      batch_size: images at a time.

    Raises:
      UserError: no such weights or number of views, or all views would be the same.
    """
    if views not in VIEWS:
      raise UserError(f'views={views!r}: must be one of {", ".join(map(str, VIEWS))}')
    self.weights = weights if isinstance(weights, Pretrained) else load(Path(weights))
    self.table = self.weights.table
    hidden = [row for row in self.table[:-1] if not isinstance(row, layers.Dropout)]
    self.last_hidden = hidden[-1].name
    self._views = jnp.asarray(VIEWS[views], jnp.float32)
    self._batch_size = batch_size
    self._variables = jax.device_put(self.weights.variables)
    preprocessing = self.weights.preprocessing
    if views > 1 and preprocessing.crop == (preprocessing.resize_to or self.weights.image_size):
      raise UserError(
        f'{views} views: all are the same, because {self.weights.source} takes whole'
        f' {preprocessing.crop}-pixel images without cropping; use 1'
      )

  def __call__(
    self, inputs: Any, *, top: int = 5, features: str | None = None
  ) -> ImagePrediction | list[ImagePrediction]:
    """Predicts the classes of images.

    Args:
      inputs: one image: a path, a PIL image, or pixels uint8 (H, W, 3) RGB, (H, W, 1) or (H, W)
        gray. Or many: an iterable of such, or a batch uint8 (N, H, W, 3) or (N, H, W, 1).
      top: how many classes to name.
      features: name of a layer whose outputs to return too.

    Returns:
      An ImagePrediction for one image, a list of them for many; with an `error` where an image
      cannot be read.

    Raises:
      UserError: an input is no image, or there is no such layer.
    """
    listed, single = images.as_list(inputs)
    found = list(self.stream(listed, top=top, features=features))
    return found[0] if single else found

  def stream(
    self,
    inputs: Any,
    *,
    top: int = 5,
    features: str | None = None,
    advance: Callable[[int], None] = lambda count: None,
  ) -> Iterator[ImagePrediction]:
    """Yields an ImagePrediction for each image, decoding the next ones meanwhile.

    Args:
      inputs, top, features: see `__call__`.
      advance: called with the number of images just done.
    """
    if features is not None:
      self._check_layer(features)
    weights, (inputs, _) = self.weights, images.as_list(inputs)
    # Rounded up, so that many small calls share a few compiled programs.
    size = min(self._batch_size, 1 << max(len(inputs) - 1, 0).bit_length())
    names = (
      str(item) if isinstance(item, Path) else f'#{number}'
      for number, item in enumerate(inputs, start=1)
    )
    for batch in images.batches(
      inputs, weights.image_size, weights.resize, size, weights.preprocessing.upright
    ):
      blank = np.zeros((weights.image_size, weights.image_size, 3), np.uint8)
      readable = [image if isinstance(image, np.ndarray) else blank for image in batch]
      pixels = np.stack(readable + [blank] * (size - len(batch)))
      found = jax.device_get(self._averaged(pixels, top, features))
      for place, (image, name) in enumerate(zip(batch, names, strict=False)):
        if isinstance(image, images.UnreadableImage):
          yield ImagePrediction(name, error=str(image))
          continue
        labels, probabilities, outputs = jax.tree.map(lambda each: each[place], found)  # noqa: B023
        truth = self._true_label(name)
        yield ImagePrediction(
          name=name,
          classes=tuple(weights.classes[label] for label in labels),
          labels=tuple(labels.tolist()),
          probabilities=probabilities,
          true_class='' if truth is None else weights.classes[truth],
          true_label=truth,
          features=outputs,
        )
      advance(len(batch))

  def _true_label(self, name: str) -> int | None:
    """The class after which the nearest folder above an image is named; None if none is.

    A folder named by a WNID is ImageNet's class of that WNID if there are 1000 classes.
    """
    classes = self.weights.classes
    for folder in (parent.name for parent in Path(name).parents):
      if folder in classes:
        return classes.index(folder)
      if imagenet.WNID.fullmatch(folder) and len(classes) == 1000:
        return imagenet.published_classes().index(folder)
    return None

  def _averaged(self, pixels: np.ndarray, top: int, features: str | None):
    """The best labels of each image, their probabilities, a layer's output; means over views."""
    placed = jax.device_put(pixels)
    found = [self._view(self._variables, placed, place, features) for place in self._views]
    probabilities, outputs = jax.tree.map(lambda *each: sum(each) / len(each), *found)
    best, order = jax.lax.top_k(probabilities, min(top, len(self.weights.classes)))
    return order, best, outputs

  @functools.cached_property
  def _view(self):
    """Compiled: probabilities of a view of each image, and the output of a layer or None."""
    model, preprocessing = AlexNet(self.table), self.weights.preprocessing

    def view(variables, pixels, place, features):
      logits, state = model.apply(
        variables, preprocessing.test_view(pixels, place), mutable=['intermediates']
      )
      outputs = state['intermediates']['outputs']
      return jax.nn.softmax(logits), outputs[features] if features else None

    return jax.jit(view, static_argnums=3)

  def _check_layer(self, name: str) -> None:
    known = [row.name for row in self.table]
    if name not in known:
      hint = did_you_mean(name, known) or f'it has {", ".join(known)}'
      raise UserError(f'net {self.weights.net} has no layer {name!r}: {hint}')
