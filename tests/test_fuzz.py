"""Damaged files end in a result or in one line, never in anything else."""

import sys

import fuzz
import pytest


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_damaged_files(name, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('safetensors')
  outcomes = fuzz.run(fuzz.TARGETS[name](), tries=400, seed=1, folder=tmp_path)
  assert outcomes['refused'] > 200 and outcomes['read'] > 20, outcomes
