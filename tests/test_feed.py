"""The feed: the rows that the order asks for, each evaluation row once, and no hanging threads."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from alexnet_jax.data import feed, order
from alexnet_jax.data.examples import Part
from alexnet_jax.data.store import Split
from alexnet_jax.data.stored_images import JpegImages
from alexnet_jax.errors import UserError

SIZE = 6


@pytest.fixture(params=['memory', 'file', 'jpeg'])
def split(request, tmp_path):
  """45 images in memory, in a file with some bytes before them, or in two files as JPEG."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (45, SIZE, SIZE, 3), dtype=np.uint8)
  labels = rng.integers(0, 10, 45, dtype=np.int32)
  if request.param == 'memory':
    return Split(images, labels)
  if request.param == 'jpeg':
    files = JpegImages(tmp_path, SIZE, quality=90)
    parts = [Part('train', 0, 0, 30), Part('train', 1, 30, 45)]
    records = [files.write(part, images[part.start : part.stop]) for part in parts]
    files.merge(parts, records, 45, [])
    return Split(files.open(45), labels)
  np.save(tmp_path / 'images.npy', images)
  mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
  return Split(mapped, labels)


def feed_threads():
  return [t for t in threading.enumerate() if t.name.startswith(('feed', 'read'))]


@pytest.fixture(autouse=True)
def no_thread_left():
  yield
  assert not feed_threads()


@pytest.mark.parametrize('batch_size', [1, 8, 100])
def test_training_batches_follow_the_order(split, batch_size):
  with feed.train_batches(split, seed=5, start_step=3, batch_size=batch_size) as batches:
    for step in range(3, 12):
      batch = next(batches)
      rows = order.rows(5, step, batch_size, 45)
      assert set(batch) == {'image', 'label', 'position'}
      assert batch['image'].dtype == np.uint8
      assert np.array_equal(batch['image'], split.images[rows])
      assert batch['label'].dtype == np.int32
      assert np.array_equal(batch['label'], split.labels[rows])
      assert batch['position'].dtype == np.int32
      assert batch['position'].tolist() == list(range(batch_size))
    assert batches.wait_seconds > 0


def test_all_images_and_the_first(split):
  assert np.array_equal(feed.all_images(split), np.asarray(split.images))
  assert np.array_equal(feed.all_images(split.first(11)), np.asarray(split.images)[:11])


def test_processes_share_a_training_batch(split):
  def batch(index, count):
    with feed.train_batches(
      split, seed=1, start_step=6, batch_size=8, process_index=index, process_count=count
    ) as batches:
      return next(batches)

  parts = [batch(index, 4) for index in range(4)]
  for key, value in batch(0, 1).items():
    assert np.array_equal(np.concatenate([part[key] for part in parts]), value)


@pytest.mark.parametrize('batch_size', [4, 15, 44, 46, 200])
@pytest.mark.parametrize('processes', [1, 2])
def test_evaluation_sees_every_row_once(split, batch_size, processes):
  batch_size *= processes
  runs = []
  for index in range(processes):
    with feed.eval_batches(
      split, batch_size=batch_size, process_index=index, process_count=processes
    ) as batches:
      runs.append(list(batches))
  assert len({len(run) for run in runs}) == 1
  seen = []
  for step, parts in enumerate(zip(*runs, strict=True)):
    batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    assert batch['label'].dtype == np.int32 and batch['row'].dtype == np.int64
    assert batch['image'].shape == (batch_size, SIZE, SIZE, 3)
    real = batch['row'] >= 0
    rows = batch['row'][real]
    seen += rows.tolist()
    assert np.array_equal(batch['image'][real], split.images[rows])
    assert np.array_equal(batch['label'][real], split.labels[rows])
    assert rows.tolist() == list(range(step * batch_size, step * batch_size + len(rows)))
    assert (batch['row'][~real] == -1).all()
    assert not batch['image'][~real].any() and not batch['label'][~real].any()
  assert sorted(seen) == list(range(45))


def test_batches_are_fresh_and_begin_on_a_page(split):
  with feed.train_batches(split, seed=0, start_step=0, batch_size=16) as batches:
    kept = [next(batches) for _ in range(10)]
  addresses = {batch['image'].ctypes.data for batch in kept}
  assert len(addresses) == 10 and all(address % 4096 == 0 for address in addresses)
  for step, batch in enumerate(kept):
    assert np.array_equal(batch['image'], split.images[order.rows(0, step, 16, 45)])
    assert all(value.flags.writeable for value in batch.values())


def test_batches_are_made_ahead_but_not_too_far(split):
  made = []

  def make(step):
    made.append(step)
    return {'step': np.array(step)}

  def wait_for(count):
    deadline = time.monotonic() + 60
    while len(made) < count:
      assert time.monotonic() < deadline

  batches = feed.Batches(feed.Gather(split), make, itertools.count())
  wait_for(3)
  time.sleep(0.05)
  assert made == [0, 1, 2]
  assert next(batches)['step'] == 0
  wait_for(4)
  batches.close()  # waits for none of the batches that nobody has asked for
  batches.close()
  assert made == [0, 1, 2, 3] and not feed_threads()
  with pytest.raises(StopIteration):
    next(batches)


def test_an_error_of_the_thread_is_raised_by_next(split):
  def make(step):
    if step == 2:
      raise OSError('the disk is gone')
    return {}

  with feed.Batches(feed.Gather(split), make, range(10)) as batches:
    next(batches)
    next(batches)
    with pytest.raises(OSError, match='the disk is gone'):
      next(batches)


def test_a_file_cut_off_is_an_error(split):
  if not isinstance(split.images, np.memmap):
    pytest.skip('needs a file')
  os.truncate(split.images.filename, 1000)
  with feed.eval_batches(split, batch_size=45) as batches:
    with pytest.raises(UserError, match='images.npy ends before byte .*disk back'):
      next(batches)


def test_batch_size_must_divide(split):
  with pytest.raises(ValueError, match='batch size 9 is no multiple of 2'):
    feed.train_batches(split, seed=0, start_step=0, batch_size=9, process_count=2)


def test_an_interpreter_ends_with_a_feed_open():
  script = """
import numpy as np
from alexnet_jax.data import feed
from alexnet_jax.data.store import Split
split = Split(np.zeros((4, 6, 6, 3), np.uint8), np.zeros(4, np.int32))
batches = feed.train_batches(split, seed=0, start_step=0, batch_size=2)
next(batches)
"""
  subprocess.run([sys.executable, '-c', script], check=True, timeout=60)
