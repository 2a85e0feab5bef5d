"""Damaged files end in a result or in one line, never in anything else."""

import sys
import time

import fuzz
import pytest

from alexnet_jax.errors import UserError


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_damaged_files(name, tmp_path):
  if name in (needed := {'weights': 'torch', 'parquet': 'pyarrow'}):
    pytest.importorskip(needed[name])
  outcomes = fuzz.run(fuzz.TARGETS[name](), tries=400, seed=1, folder=tmp_path)
  assert outcomes['refused'] > 100 and outcomes['read'] > 5, outcomes


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize(
  'fault, message',
  [
    (lambda path: {}[path], 'KeyError'),
    (lambda path: bytearray(2 * fuzz.BYTES), 'MemoryError'),
    (lambda path: time.sleep(20), 'TimeoutError'),
    (lambda path: raise_error('two\nlines'), 'not one line'),
    (lambda path: raise_error('damaged'), 'the good file is refused'),
  ],
)
def test_faults_are_found(tmp_path, monkeypatch, fault, message):
  """A reader that fails in another way is told apart from one that refuses."""
  monkeypatch.setattr(fuzz, 'SECONDS', 1)
  target = fuzz.Target(lambda: {'file': b'content'}, fault)
  with pytest.raises(AssertionError, match=message):
    fuzz.run(target, tries=3, seed=0, folder=tmp_path)


def raise_error(message):
  raise UserError(message)
