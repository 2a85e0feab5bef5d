"""Nearest neighbors of images by the features of a net (paper section 6.1)."""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.inference.image_predictions import ImagePrediction

# For each query: Euclidean distances and images, nearest first.
Neighbors = Sequence[Sequence[tuple[float, ImagePrediction]]]


def search(
  queries: Sequence[ImagePrediction], gallery: Sequence[ImagePrediction], count: int
) -> Neighbors:
  """The nearest images of the gallery for each query, without the query itself.

  Args:
    queries, gallery: with features of the same layer.
    count: number of neighbors of each.
  """
  files = [Path(each.name).resolve() for each in gallery]
  found = []
  for query in queries:
    own, features = Path(query.name).resolve(), np.asarray(query.features, np.float64)
    pairs = [
      (float(np.linalg.norm(np.asarray(each.features) - features)), each)
      for each, file in zip(gallery, files, strict=True)
      if file != own
    ]
    found.append(sorted(pairs, key=operator.itemgetter(0))[:count])
  return found


def neighbors_text(queries: Sequence[ImagePrediction], found: Neighbors) -> str:
  """A block for each query: distances and files, nearest first."""
  blocks = (
    '\n'.join([query.name, *(f'  {distance:10.4g}  {each.name}' for distance, each in nearest)])
    for query, nearest in zip(queries, found, strict=True)
  )
  return '\n\n'.join(blocks)


def neighbors_json(queries: Sequence[ImagePrediction], found: Neighbors) -> list[dict[str, Any]]:
  """An object for each query: file, and neighbors with their distance."""
  return [
    {
      'file': query.name,
      'neighbors': [{'file': each.name, 'distance': distance} for distance, each in nearest],
    }
    for query, nearest in zip(queries, found, strict=True)
  ]
