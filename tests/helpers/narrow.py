"""Nets with fewer channels."""

import dataclasses
import math

from alexnet_jax.model import layers


def narrow(table: layers.Table, divisor: int) -> layers.Table:
  """The same net with 1/divisor of the channels in every layer but the last.

  Initial standard deviations grow by sqrt(divisor) wherever the input has shrunk, so that a
  unit's signal keeps its size: small enough to test on, alike enough to mean something.
  """
  weighted = [row for row in table if isinstance(row, (layers.Conv, layers.Dense))]
  rows = []
  for row in table:
    if isinstance(row, (layers.Conv, layers.Dense)):
      changes = {}
      if row is not weighted[0] and isinstance(row.init, float):
        changes['init'] = row.init * math.sqrt(divisor)
      if row is not weighted[-1]:
        changes['features'] = row.features // divisor
      row = dataclasses.replace(row, **changes)
    rows.append(row)
  return tuple(rows)
