"""What a net makes of a photo, as arrays: outputs of all layers, guesses of (covered) views."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from alexnet_jax.data.images import read_image
from alexnet_jax.inference import neighbors
from alexnet_jax.inference.image_predictions import ImagePrediction
from alexnet_jax.inference.predictor import Predictor
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.preprocessing import VIEWS
from alexnet_jax.model.pretrained import Pretrained

CELLS = 9  # places of the occluder along a side
_BATCH_SIZE = 32  # views that the net sees at a time
_NEIGHBORS = 6  # as in the paper's Figure 4

# (distance, image uint8 (S, S, 3), its class), nearest first.
Neighbors = tuple[tuple[float, np.ndarray, str], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
  """Some of what the net was trained on.

  Attributes:
    images: uint8 (N, S, S, 3).
    classes: the name of each one's class.
  """

  images: np.ndarray
  classes: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
  """What a net makes of one photo.

  Attributes:
    prediction: of the center view, with the outputs of the last hidden layer as features.
    pixels: uint8 (S, S, 3), as resized for the net.
    outputs: of every row by its name, for the center view; `input` is that view itself.
    views: probabilities of each of `views_of`, float32 (views, classes).
    covered: float32 (CELLS, CELLS, classes), probabilities of the center view when a square
      around that place holds the mean of the training images, see `occluder`.
    neighbors: the nearest training images, if there are any.
  """

  prediction: ImagePrediction
  pixels: np.ndarray
  outputs: dict[str, np.ndarray]
  views: np.ndarray
  covered: np.ndarray
  neighbors: Neighbors


def views_of(weights: Pretrained) -> tuple[tuple[float, float, int], ...]:
  """(row, column, mirrored) of the views to show: ten; nine if the net has seen no mirror images;
  the center alone if it sees whole images."""
  preprocessing = weights.preprocessing
  if preprocessing.crop == (preprocessing.resize_to or weights.image_size):
    return VIEWS[1]
  return VIEWS[10 if preprocessing.random_flip else 9]


def occluder(row: int, column: int, side: int) -> tuple[int, int, int, int]:
  """The square at a place of the CELLS x CELLS: top, left, bottom and right pixel of the view.

  It is two cells wide, so that squares overlap by half, and is cut at the edge.
  """
  edges = [round(side * half / (2 * CELLS)) for half in range(2 * CELLS + 1)]
  top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
  bottom, right = min(2 * row + 3, 2 * CELLS), min(2 * column + 3, 2 * CELLS)
  return edges[top], edges[left], edges[bottom], edges[right]


def observe(
  weights: Pretrained,
  files: Sequence[Path],
  training: TrainingImages | None,
  advance: Callable[[int], None] = lambda photos: None,
) -> tuple[list[Observation], list[ImagePrediction]]:
  """Looks at photos.

  Args:
    weights: the trained net.
    files: of the photos.
    training: images to look for neighbors in.
    advance: told the number of photos just done.

  Returns:
    What it makes of each that can be read, and the others with their `error`.
  """
  predictor = Predictor(weights, batch_size=_BATCH_SIZE)
  predictions = list(predictor.stream(files, features=predictor.last_hidden))
  readable = [each for each in predictions if not each.error]
  nearest = _nearest(predictor, readable, training)
  net = _Net(weights)
  found = []
  for prediction, near in zip(readable, nearest, strict=True):
    found.append(net.observe(prediction, near))
    advance(1)
  return found, [each for each in predictions if each.error]


class _Net:
  """A net as one compiled program, for batches of views of one size."""

  def __init__(self, weights: Pretrained):
    self._weights = weights
    self._variables = jax.device_put(weights.variables)
    self._cut = jax.jit(weights.preprocessing.test_view)
    model = AlexNet(weights.table)

    @jax.jit
    def apply(variables, views):
      logits, state = model.apply(variables, views, mutable=['intermediates'])
      outputs = state['intermediates']['outputs']
      return jax.nn.softmax(logits), {name: values[0] for name, values in outputs.items()}

    self._apply = apply

  def observe(self, prediction: ImagePrediction, near: Neighbors) -> Observation:
    weights, preprocessing = self._weights, self._weights.preprocessing
    pixels = read_image(
      Path(prediction.name), weights.image_size, weights.resize, preprocessing.upright
    )
    places = np.asarray((*VIEWS[1], *views_of(weights)), np.float32)
    views = [np.asarray(self._cut(pixels[None], place)[0]) for place in places]
    for number in range(CELLS * CELLS):
      covered = views[0].copy()
      top, left, bottom, right = occluder(*divmod(number, CELLS), preprocessing.crop)
      covered[top:bottom, left:right] = 0  # the mean has been subtracted
      views.append(covered)
    found, outputs = self._batches(views)
    return Observation(
      prediction=prediction,
      pixels=pixels,
      outputs={'input': views[0], **outputs},
      views=found[1 : len(places)],
      covered=found[len(places) :].reshape(CELLS, CELLS, -1),
      neighbors=near,
    )

  def _batches(self, views: list[np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Probabilities (N, classes) of views, and the outputs of all layers for the first view."""
    blank = [np.zeros_like(views[0])] * (-len(views) % _BATCH_SIZE)
    batches = np.split(np.stack(views + blank), range(_BATCH_SIZE, len(views), _BATCH_SIZE))
    found = [self._apply(self._variables, batch) for batch in batches]
    probabilities, outputs = zip(*found, strict=True)
    return np.concatenate(probabilities)[: len(views)], jax.device_get(outputs[0])


def _nearest(
  predictor: Predictor, photos: Sequence[ImagePrediction], training: TrainingImages | None
) -> list[Neighbors]:
  """For each photo the nearest of the training images, by the last hidden layer."""
  if training is None:
    return [()] * len(photos)
  gallery = list(predictor.stream(training.images, features=predictor.last_hidden))
  known = zip(training.images, training.classes, strict=True)
  shown = {each.name: pair for each, pair in zip(gallery, known, strict=True)}
  found = neighbors.search(photos, gallery, _NEIGHBORS)
  return [tuple((distance, *shown[each.name]) for distance, each in near) for near in found]
