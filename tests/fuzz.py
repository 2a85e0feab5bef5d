"""Damages good files in many ways and demands of a reader: a result, or one line that says why not.

  python tests/fuzz.py weights --tries=5000

Any other exception, more than a minute, or a gigabyte more memory is a failure, and the file stays.
A target names good files and how to read one; `TARGETS` has them all.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib.util
import io
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from helpers import tiny_data

from alexnet_jax.errors import UserError

SECONDS, BYTES = 60, 1 << 30
_TEXT = re.compile(rb'[ -~]{4,}')
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader of untrusted files.

  Attributes:
    samples: makes good files, bytes by name.
    read: reads one; raises UserError if it is damaged.
    setting: what has to hold meanwhile.
  """

  samples: Callable[[], dict[str, bytes]]
  read: Callable[[Path], object]
  setting: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def mutate(rng: random.Random, data: bytes) -> bytes:
  """Damages a file, or a member of an archive, whose checksum is then good again."""
  if not data.startswith(b'PK') or rng.random() < 0.3:
    return _damaged(rng, data)
  buffer = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, 'w') as new:
    names = old.namelist()
    chosen = rng.choice(
      [*names, *(name for name in names if name.endswith(('.pkl', 'metadata.npy')))]
    )
    for name in names:
      new.writestr(name, _damaged(rng, old.read(name)) if name == chosen else old.read(name))
  return buffer.getvalue()


def _damaged(rng: random.Random, data: bytes) -> bytes:
  """One to three damages: cut, flip bits, change a number, drop, repeat or insert a piece."""
  # Near text, start and end lies what gives the rest its meaning.
  landmarks = [0, len(data), *(match.start() for match in _TEXT.finditer(data))]
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    data = bytearray(data)
    place = rng.randrange(len(data) + 1)
    if rng.random() < 0.8:
      place = min(max(rng.choice(landmarks) + rng.randint(-24, 48), 0), len(data))
    size = min(int(2 ** rng.uniform(0, 12)), len(data) - place)
    match rng.randrange(7):
      case 0:
        del data[place:]
      case 1 | 2:
        for at in range(place, min(place + rng.choice((1, 1, 4)), len(data))):
          data[at] ^= 1 << rng.randrange(8)
      case 3:
        number = rng.choice(_NUMBERS) % 2**64
        code = rng.choice('BHIQ')
        number %= 256 ** struct.calcsize(f'<{code}')
        data[place : place + struct.calcsize(f'<{code}')] = struct.pack(f'<{code}', number)
      case 4:
        del data[place : place + size]
      case 5:
        data[place:place] = data[place : place + size]
      case 6:
        data[place:place] = rng.randbytes(min(size, 64))
    data = bytes(data) or b'\0'
  return data


def run(target: Target, tries: int, seed: int, folder: Path) -> collections.Counter:
  """Reads every sample, and `tries` damaged ones.

  Returns:
    How many were read, and how many refused.

  Raises:
    AssertionError: what must not happen has happened; the file is left in `folder`.
  """
  outcomes, path = collections.Counter(), folder / 'damaged'
  with target.setting():
    samples = sorted(target.samples().items())
    for name, data in samples:
      path.write_bytes(data)
      assert _read(target, path, f'the good {name}') == 'read', f'the good {name} is refused'
    for number in range(tries):
      rng = random.Random(f'{seed}/{number}')
      name, data = rng.choice(samples)
      path.write_bytes(mutate(rng, data))
      outcomes[_read(target, path, f'seed {seed}, try {number}, of {name}: {path}')] += 1
  path.unlink()
  return outcomes


def _read(target: Target, path: Path, what: str) -> str:
  try:
    with _limits():
      target.read(path)
    return 'read'
  except UserError as error:
    message = str(error)
    assert '\n' not in message and len(message) < 1000, f'{what}: not one line: {message!r}'
    return 'refused'
  except BaseException as error:
    raise AssertionError(f'{what}: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
  """An exception in place of a hang or of all memory being used."""

  def late(*_):
    raise TimeoutError(f'took more than {SECONDS} s')

  pages = int(Path('/proc/self/statm').read_text().split()[0])
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  former = signal.signal(signal.SIGALRM, late)
  try:
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    signal.alarm(SECONDS)
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _weights() -> Target:
  from helpers import weight_files as files

  from alexnet_jax.weights import load, npz

  def samples():
    owt, caffe = files.random_arrays('owt', 3), files.random_arrays('caffe', 3)
    state, layers = files.state_dict(owt), files.caffe_tensorflow_layers(caffe)
    with tempfile.NamedTemporaryFile() as file:
      file.write(files.torch_file(state))
      file.flush()
      ours = npz.write(load.load(file.name))
    onnx = {}
    if importlib.util.find_spec('onnx'):
      from helpers import onnx_files

      onnx['onnx'] = onnx_files.zoo_model('caffe', caffe).SerializeToString()
    return {
      **onnx,
      'zip of torch': files.torch_file(state),
      'pickles of torch': files.torch_file(state, legacy=True),
      'safetensors': files.safetensors_file(owt),
      'caffemodel': files.caffe_file('caffe', caffe),
      'caffemodel v1': files.caffe_file('caffenet', caffe, v1=True),
      'npy': files.npy_file(layers),
      'npy of Python 2': files.python2_npy_file(layers),
      'npz': ours,
    }

  return Target(samples, load.load, files.narrow_nets)


def _images() -> Target:
  from alexnet_jax.data import images

  def samples():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    made, forms = {}, ('BMP', 'WEBP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'PCX', 'SGI')
    for form, modes in {'JPEG': ('RGB', 'L', 'CMYK'), 'PNG': ('RGB', 'RGBA', 'P', 'I;16')}.items():
      for mode in modes:
        made[f'{form} {mode}'] = tiny_data.encoded(pixels, form, mode)
    return made | {form: tiny_data.encoded(pixels, form) for form in forms}

  def read(path):
    try:
      images.read_image(path.read_bytes(), 32, 'crop', upright=True)
    except images.UnreadableImage as error:
      raise UserError(str(error)) from None

  return Target(samples, read)


def _store(file: str) -> Target:
  from alexnet_jax.data import store
  from alexnet_jax.data.image_folder import open_folder
  from alexnet_jax.data.writer import write_store
  from alexnet_jax.terminal import Console

  folder = Path(tempfile.mkdtemp(prefix='fuzzed-store-'))
  photos = tiny_data.write_folder(folder / 'photos', train=4, held_out=2)
  source = open_folder(photos, validation_fraction=0.25)
  write_store(
    source, folder / 'store', image_size=16, resize='crop', progress=Console(quiet=True), workers=1
  )
  file = folder / 'store' / file
  good = file.read_bytes()

  def read(path):
    file.write_bytes(path.read_bytes())
    store.open_store(folder / 'store')

  return Target(lambda: {file.name: good}, read)


def _parquet() -> Target:
  import pyarrow
  from pyarrow import parquet as writer

  from alexnet_jax.data import parquet

  def samples():
    images = [{'bytes': bytes([n]) * 300, 'path': f'{n}.png'} for n in range(40)]
    made = {}
    for compression in ('snappy', 'none'):
      for labels in ([0, 1] * 20, ['a', 'b'] * 20):
        table = pyarrow.table({'image': images, 'label': labels})
        file = io.BytesIO()
        writer.write_table(table, file, row_group_size=16, compression=compression)
        made[f'{compression} {labels[0]!r}'] = file.getvalue()
    return made

  def read(path):
    source = parquet.open_parquet(path, [path], 0.25, lambda n: None)
    for _ in source.train.images.stream(0):
      pass

  return Target(samples, read)


def _shards() -> Target:
  from alexnet_jax.data import shards

  def samples():
    made = {}
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
      file = io.BytesIO()
      with tarfile.open(fileobj=file, mode='w', format=kind) as tar:
        for n in range(8):
          tiny_data.add_to_archive(tar, f'{"deep/" * 20}{n}.png', bytes([n]) * 700)
          tiny_data.add_to_archive(tar, f'{"deep/" * 20}{n}.json', b'{"label": %d}' % (n % 2))
      made[f'tar {kind}'] = file.getvalue()
    return made

  def read(path):
    source = shards.open_shards(path, [path], 0.25, lambda n: None)
    for index in range(len(source.train)):
      source.train[index]

  return Target(samples, read)


def _zips() -> Target:
  from alexnet_jax.data import zip_files

  def samples():
    made = {}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      for names in ('train/{label}/{n}.png', '{label}_{n}.png', 'images/{n}.png'):
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w', method) as archive:
          for n in range(8):
            archive.writestr(names.format(n=n, label='ab'[n % 2]), bytes([n]) * 700)
          if 'images' in names:
            table = ''.join(f'{n},{"ab"[n % 2]}\n' for n in range(8))
            archive.writestr('labels.csv', f'id,label\n{table}')
        made[f'{method} {names}'] = file.getvalue()
    return made

  def read(path):
    source = zip_files.open_zips(path, [path], 0.25)
    try:
      for index in range(len(source.train)):
        source.train[index]
    except OSError as error:  # an unreadable image
      raise UserError(str(error)) from None

  return Target(samples, read)


def _tables() -> Target:
  from alexnet_jax.data.image_folder import open_folder

  folder = Path(tempfile.mkdtemp(prefix='fuzzed-table-'))
  tiny_data.write_images(folder / 'images', 8)
  rows = [(f'{n:03}.png', 'ab'[n % 2]) for n in range(8)]

  def samples():
    return {
      f'with {sign}': ''.join(f'{file}{sign}{label}\r\n' for file, label in rows).encode()
      for sign in ',;\t'
    }

  def read(path):
    (folder / 'labels.csv').write_bytes(path.read_bytes())
    open_folder(folder, 0.25, 'labels.csv')

  return Target(samples, read)


TARGETS = {
  'weights': _weights,
  'images': _images,
  'store': lambda: _store('meta.json'),
  'labels': lambda: _store('train/labels.npy'),
  'parquet': _parquet,
  'shards': _shards,
  'zips': _zips,
  'tables': _tables,
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('target', choices=TARGETS)
  parser.add_argument('--tries', type=int, default=5000)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  folder = Path(tempfile.mkdtemp(prefix='fuzz-'))
  outcomes = run(TARGETS[flags.target](), flags.tries, flags.seed, folder)
  shutil.rmtree(folder)
  print(', '.join(f'{count:,} {outcome}' for outcome, count in outcomes.items()))
  return 0


if __name__ == '__main__':
  sys.exit(main())
