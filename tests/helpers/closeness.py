"""When numbers that were computed in two ways agree."""

import jax
import numpy as np


def assert_close(found, expected, tolerance=1e-5):
  """Every array of two trees agrees, relative to its largest element: sums of many terms cancel."""

  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    name = jax.tree_util.keystr(path)
    assert a.shape == b.shape, name
    scale = max(np.abs(b).max(), 1e-6)
    np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=name)

  jax.tree_util.tree_map_with_path(compare, found, expected)
