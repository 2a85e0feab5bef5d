"""A program of `test_store`: writes a store under kill -9, and compares it with an undisturbed one.

  python killed_writer.py IMAGES PLACE WORKERS ENCODING

A run that ends before its kill counts as none: what it wrote is compared and removed. Prints how
many parts were done at each kill.
"""

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from alexnet_jax.data import image_folder, writer

KILLS = 10


class Slow:
  """A split that takes its time, so that kills find work going on."""

  def __init__(self, split, seconds):
    self.split = split
    self.seconds = seconds

  def __len__(self):
    return len(self.split)

  def __getitem__(self, index):
    time.sleep(self.seconds)
    return self.split[index]


def start(images, path, workers, encoding):
  """Begins to write a store in a process of its own; returns its id."""
  if process := os.fork():
    return process
  source = image_folder.open_folder(images, 0.25)
  seconds = 0.006 * workers**2  # as long in all as starting takes, which with workers is longer
  source = dataclasses.replace(
    source, train=Slow(source.train, seconds), eval=Slow(source.eval, seconds)
  )
  writer.write_store(
    source, path, image_size=16, resize='crop', workers=workers, rows_per_part=8, encoding=encoding
  )
  os._exit(0)


def contents(path):
  return {file.relative_to(path): file.read_bytes() for file in path.rglob('*') if file.is_file()}


def main(images, place, workers, encoding):
  options = (pathlib.Path(images), pathlib.Path(place, 'store'), int(workers), encoding)
  path = options[1]
  began = time.monotonic()
  assert os.waitpid(start(*options), 0)[1] == 0
  seconds = time.monotonic() - began
  reference = contents(path)
  shutil.rmtree(path)

  found = []
  while len(found) < KILLS:
    process = start(*options)
    time.sleep(random.uniform(0, seconds))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
      found.append(len(list(path.with_name('store.tmp').glob('parts/*.npz'))))
    else:
      assert status == 0
    if path.exists():
      assert contents(path) == reference
      shutil.rmtree(path)
  assert os.waitpid(start(*options), 0)[1] == 0
  assert contents(path) == reference
  assert not path.with_name('store.tmp').exists()
  print('parts done at each kill:', *found)


if __name__ == '__main__':
  main(*sys.argv[1:])
