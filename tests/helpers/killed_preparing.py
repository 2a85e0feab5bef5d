"""A program of `test_store`: prepares packed images under kill -9, again and again.

  python killed_preparing.py IMAGES PLACE STEP

The process dies at one of the moments at which an image is unpacked, a row is read, or a file gets
its name, before or after that; the next one goes on, and dies at a later moment, counted from its
own start. At every STEP-th moment there is one death. Prints the moments of a run, and how many
processes died while images were being unpacked.
"""

import itertools
import os
import pathlib
import shutil
import signal
import sys

from alexnet_jax.data import folder_formats, job, parquet, writer


def prepare(images, path, last):
  """Prepares in a process of its own, which dies at moment `last`; returns its exit status."""
  if process := os.fork():
    return os.waitpid(process, 0)[1]
  moments = itertools.count(1)

  def moment():
    if next(moments) == last:
      os.kill(os.getpid(), signal.SIGKILL)

  def wrapped(real):
    def function(*arguments, **named):
      moment()
      result = real(*arguments, **named)
      moment()
      return result

    return function

  def stream(self, number, start=0, real=parquet.ParquetImages.stream):
    for data in real(self, number, start):
      moment()
      yield data

  parquet.ParquetImages.stream = stream
  job.Job.read_row = wrapped(job.Job.read_row)
  for name in ('replace', 'rename'):
    setattr(os, name, wrapped(getattr(os, name)))
  source = folder_formats.open_images(images, 0.25)
  options = {'image_size': 16, 'resize': 'crop', 'workers': 1, 'rows_per_part': 8}
  writer.write_store(source, path, **options)
  path.with_suffix('.moments').write_text(str(next(moments)))
  os._exit(0)


def contents(path):
  return {file.relative_to(path): file.read_bytes() for file in path.rglob('*') if file.is_file()}


def main(images, place, step):
  images, path = pathlib.Path(images), pathlib.Path(place, 'store')
  assert prepare(images, path, 0) == 0
  reference, unpacking, deaths = contents(path), 0, 0
  moments = int(path.with_suffix('.moments').read_text())
  shutil.rmtree(path)
  for last in range(1, moments, int(step)):
    status = prepare(images, path, last)
    if os.WIFSIGNALED(status):
      deaths += 1
      unpacking += path.with_name('store.unpacked.tmp').exists() and not path.exists()
      continue
    # What was left had fewer moments than that.
    assert status == 0 and contents(path) == reference, f'after {deaths} deaths'
    shutil.rmtree(path)
  assert prepare(images, path, 0) == 0
  assert contents(path) == reference
  left = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith('.'))
  assert left == ['store', 'store.moments'], left
  print(f'{moments} moments, {deaths} deaths, {unpacking} of them before all was unpacked and read')


if __name__ == '__main__':
  main(*sys.argv[1:])
