"""SIGKILL at moments drawn at random; `python tests/kills.py` does fifty."""

import pytest
from kills import kill_again_and_again

pytestmark = pytest.mark.slow


def test_killed_runs_end_like_one_that_was_not(tmp_path):
  done, ended, _ = kill_again_and_again(tmp_path, kills=2, seed=1)
  assert sum(done.values()) == 2 and ended >= 1
