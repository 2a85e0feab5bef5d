"""A trained net applied to pictures, as a library.

predictor = Predictor('runs/digits')  # the folder of a run, or a file of weights
print(predictor('a.png').classes[0])
for prediction in predictor(['a.png', 'b.png']):
  print(prediction.name, prediction.classes[0], prediction.probabilities[0])
"""

import collections
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
  """Applies a trained net to pictures, decoded as in training, on one device.

  Attributes:
    weights: the trained net.
    table: its layers.
    last_hidden: name of the layer that the logits are computed from, whose outputs paper section
      6.1 compares.
  """

  def __init__(
    self, weights: str | os.PathLike | Pretrained, *, views: int = 1, batch_size: int = _BATCH_SIZE
  ):
    """Reads the net; compiles it at the first call.

    Args:
      weights: a file, the folder of a run, or a net that has been read.
      views: 1 (the center), 9 or 10, over which probabilities and features are averaged.
      batch_size: pictures at a time.

    Raises:
      UserError: no such net or number of views, or all views would be the same.
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
        f'{views} views: all are the same, because {self.weights.source} sees the whole of its'
        f' {preprocessing.crop}-pixel pictures; use 1'
      )

  def __call__(
    self, inputs: Any, *, top: int = 5, features: str | None = None
  ) -> ImagePrediction | list[ImagePrediction]:
    """Looks at pictures.

    Args:
      inputs: one picture: a path, a PIL image, or pixels uint8 (H, W, 3) RGB, (H, W, 1) or (H, W)
        gray. Or many: an iterable of such, or a batch uint8 (N, H, W, 3) or (N, H, W, 1).
      top: classes to name, at most as many as there are.
      features: a layer whose outputs are wanted too.

    Returns:
      An ImagePrediction for one picture; a list of them, in order, for many. What cannot be read
      has an `error`.

    Raises:
      UserError: something is no image, or there is no such layer.
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
    advance: Callable[[int], None] = lambda pictures: None,
  ) -> Iterator[ImagePrediction]:
    """Yields an ImagePrediction for each picture; while the net works, others are decoded.

    Args:
      inputs, top, features: see `__call__`.
      advance: told the number of pictures just done.
    """
    if features is not None:
      self._check_layer(features)
    inputs, _ = images.as_list(inputs)
    # Rounded up, so that many small calls share a few compiled programs.
    size = min(self._batch_size, 1 << max(len(inputs) - 1, 0).bit_length())
    decoded = images.batches(
      inputs,
      self.weights.image_size,
      self.weights.resize,
      size,
      self.weights.preprocessing.upright,
    )
    names = (
      str(item) if isinstance(item, Path) else f'#{number}'
      for number, item in enumerate(inputs, start=1)
    )
    under_way: collections.deque[tuple[list, tuple]] = collections.deque()
    for batch in decoded:
      under_way.append((batch, self._start(batch, size, top, features)))
      if len(under_way) > 2:
        yield from self._finish(*under_way.popleft(), names, advance)
    while under_way:
      yield from self._finish(*under_way.popleft(), names, advance)

  def _start(self, batch: list, size: int, top: int, features: str | None):
    """Sets the net to work on a batch, without waiting."""
    side = self.weights.image_size
    pixels = np.zeros((size, side, side, 3), np.uint8)
    for place, picture in enumerate(batch):
      if isinstance(picture, np.ndarray):
        pixels[place] = picture
    pixels = jax.device_put(pixels)
    found = [self._view(self._variables, pixels, place, features) for place in self._views]
    probabilities, outputs = jax.tree.map(lambda *each: sum(each) / len(each), *found)
    best, order = jax.lax.top_k(probabilities, min(top, len(self.weights.classes)))
    return order, best, outputs

  def _finish(self, batch, found, names, advance) -> Iterator[ImagePrediction]:
    order, probabilities, features = jax.device_get(found)
    for place, (picture, name) in enumerate(zip(batch, names, strict=False)):
      if isinstance(picture, images.UnreadableImage):
        yield ImagePrediction(name, error=str(picture))
        continue
      labels = tuple(order[place].tolist())
      classes = tuple(self.weights.classes[label] for label in labels)
      truth = self._true_label(name)
      yield ImagePrediction(
        name=name,
        classes=classes,
        labels=labels,
        probabilities=probabilities[place],
        true_class='' if truth is None else self.weights.classes[truth],
        true_label=truth,
        features=None if features is None else features[place],
      )
    advance(len(batch))

  def _true_label(self, name: str) -> int | None:
    """The class after which the nearest folder above a picture is named; None if none is.

    ImageNet's folders are WNIDs, and then so is the order of its classes, whatever they are called.
    """
    classes = self.weights.classes
    for folder in (parent.name for parent in Path(name).parents):
      if folder in classes:
        return classes.index(folder)
      if imagenet.WNID.fullmatch(folder) and len(classes) == 1000:
        return imagenet.published_classes().index(folder)
    return None

  @functools.cached_property
  def _view(self):
    """Compiled: probabilities of a view of each picture, and the output of a layer or None."""
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
