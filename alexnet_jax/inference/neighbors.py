"""Nearest neighbors of pictures by the features of a net (paper section 6.1)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.inference.image_predictions import ImagePrediction


@dataclasses.dataclass(frozen=True)
class Neighbor:
  """A picture of a gallery and the Euclidean distance of its features from those of a query."""

  name: str
  distance: float


def nearest_rows(
  gallery: np.ndarray, query: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The rows of a gallery that are nearest to a query by Euclidean distance.

  Args:
    gallery: float32 (n, ...), the features of each picture.
    query: float32 (...).
    count: k; at most n are found.

  Returns:
    Rows int64 (k,), nearest first, and their distances float64 (k,).
  """
  query = query.astype(np.float64)
  distances = np.array([np.linalg.norm(row - query) for row in gallery])
  order = np.argsort(distances, kind='stable')[:count]
  return order, distances[order]


def search(
  queries: Sequence[ImagePrediction], gallery: Sequence[ImagePrediction], count: int
) -> list[list[Neighbor]]:
  """For each query the nearest pictures of the gallery, itself left out.

  Args:
    queries, gallery: with features of the same layer.
    count: how many; fewer where there are no more.
  """
  features = np.stack([each.features for each in gallery])
  files = [Path(each.name).resolve() for each in gallery]
  found = []
  for query in queries:
    order, distances = nearest_rows(features, query.features, count + 1)
    own = Path(query.name).resolve()
    pairs = zip(order, distances, strict=True)
    others = [Neighbor(gallery[row].name, float(d)) for row, d in pairs if files[row] != own]
    found.append(others[:count])
  return found


def neighbors_text(queries: Sequence[ImagePrediction], found: Sequence[Sequence[Neighbor]]) -> str:
  """A block for each query: distances and files, nearest first."""
  lines = []
  for query, others in zip(queries, found, strict=True):
    lines += ['', query.name]
    lines += [f'  {other.distance:10.4g}  {other.name}' for other in others]
  return '\n'.join(lines[1:])


def neighbors_json(
  queries: Sequence[ImagePrediction], found: Sequence[Sequence[Neighbor]]
) -> list[dict[str, Any]]:
  """One object a query: file, and neighbors with their distance."""
  return [
    {
      'file': query.name,
      'neighbors': [{'file': other.name, 'distance': other.distance} for other in others],
    }
    for query, others in zip(queries, found, strict=True)
  ]
