"""The store: right pixels, exact statistics, the same bytes whatever happened, nothing silent."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
import zipfile

import numpy as np
import pytest
from helpers.tiny_data import data_config, pack, write_folder
from PIL import Image

from alexnet_jax import config, files, terminal
from alexnet_jax.data import (
  folder_formats,
  image_folder,
  images,
  listing,
  order,
  preparation,
  stored_images,
)
from alexnet_jax.data.examples import Example, Source
from alexnet_jax.data.image_folder import open_folder
from alexnet_jax.data.job import ORDER_SEED, Job, in_memory_store
from alexnet_jax.data.preparation import prepare_store, store_path
from alexnet_jax.data.store import open_store, verify_store
from alexnet_jax.data.writer import write_store
from alexnet_jax.errors import UserError
from alexnet_jax.run.preprocessing_file import read_preprocessing, write_preprocessing
from alexnet_jax.terminal import Console
from alexnet_jax.train.experiment import make_preprocessing

SIZE = 16


@pytest.fixture(scope='module')
def insects(tmp_path_factory):
  """An image folder: 60 + 21 images of 3 classes."""
  return write_folder(tmp_path_factory.mktemp('data') / 'insects')


@pytest.fixture
def source(insects):
  return open_folder(insects, 0.25)


def write(source, path, **options):
  """A store with parts of 8 rows, written in this process unless told otherwise."""
  options = {'image_size': SIZE, 'resize': 'crop', 'workers': 1, 'rows_per_part': 8} | options
  return write_store(source, path, **options)


def contents(path):
  """Relative file name -> bytes."""
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in sorted(path.rglob('*'))
    if file.is_file()
  }


@pytest.fixture
def reference(source, tmp_path):
  """The bytes of an undisturbed store."""
  write(source, tmp_path / 'reference')
  return contents(tmp_path / 'reference')


# What is in it.


@pytest.mark.parametrize('resize', ['crop', 'warp'])
def test_rows_are_the_images(source, tmp_path, resize):
  written = write(source, tmp_path / 'store', resize=resize)
  assert written.classes == ('ant', 'bee', 'cat')
  for name, split, count in (('train', written.train, 60), ('eval', written.eval, 21)):
    assert len(split) == count and split.images.shape == (count, SIZE, SIZE, 3)
    assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    indices = np.load(tmp_path / 'store' / name / 'source_index.npy')
    assert sorted(indices) == list(range(count))
    for row in range(count):
      example = getattr(source, name)[int(indices[row])]
      assert split.labels[row] == example.label
      assert np.array_equal(split.images[row], images.read_image(example.data, SIZE, resize))
  assert np.array_equal(
    np.load(tmp_path / 'store/train/source_index.npy'), order.permutation(ORDER_SEED, 0, 60)
  )
  assert np.load(tmp_path / 'store/eval/source_index.npy').tolist() == list(range(21))


def test_statistics_agree_with_float64(source, tmp_path):
  written = write(source, tmp_path / 'store')
  pixels = np.asarray(written.train.images, np.float64)
  assert written.mean_image.dtype == np.float32 and written.mean_image.shape == (SIZE, SIZE, 3)
  np.testing.assert_allclose(written.mean_image, pixels.mean(axis=0), rtol=1e-6)
  covariance = np.cov(pixels.reshape(-1, 3).T, bias=True)
  vectors, stdevs = written.color_eigenvectors, written.color_stdevs
  assert (np.diff(stdevs) > 0).all()
  np.testing.assert_allclose(vectors @ np.diag(stdevs**2) @ vectors.T, covariance, rtol=1e-9)
  np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
  assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def test_in_memory_store_is_the_same(source, tmp_path):
  written = write(source, tmp_path / 'store')
  memory = in_memory_store(source, image_size=SIZE, resize='crop')
  for name in ('train', 'eval'):
    one, other = getattr(written, name), getattr(memory, name)
    assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
  assert np.array_equal(written.mean_image, memory.mean_image)
  assert np.array_equal(written.color_stdevs, memory.color_stdevs)
  assert np.array_equal(written.color_eigenvectors, memory.color_eigenvectors)


def test_color_components_of_gray_images_are_finite():
  memory = prepare_store(data_config(source='digits'))
  assert np.isfinite(memory.color_eigenvectors).all()
  np.testing.assert_allclose(memory.color_stdevs[:2], 0, atol=1e-4)


@pytest.mark.parametrize('encoding', ['raw', 'jpeg 90'])
def test_any_number_of_workers(source, tmp_path, encoding):
  for workers in (1, 2, 3):
    write(source, tmp_path / str(workers), workers=workers, encoding=encoding)
    assert contents(tmp_path / str(workers)) == contents(tmp_path / '1')
    assert not (tmp_path / f'{workers}.tmp').exists()


class Stop(Console):
  """Raises KeyboardInterrupt after so many rows."""

  def __init__(self, rows):
    super().__init__(quiet=True)
    self.rows = rows

  @contextlib.contextmanager
  def count(self, title, total=None, done=0):
    self.done = done
    yield self.advance

  def advance(self, n):
    self.rows -= n
    if self.rows < 0:
      raise KeyboardInterrupt


def test_interrupted_writing_goes_on_where_it_stopped(source, tmp_path, reference):
  with pytest.raises(KeyboardInterrupt):
    write(source, tmp_path / 'store', progress=Stop(20))
  records = sorted((tmp_path / 'store.tmp/parts').glob('*.npz'))
  assert len(records) == 2
  before = {record: record.stat().st_mtime_ns for record in records}
  progress = Stop(20)
  with pytest.raises(KeyboardInterrupt):
    write(source, tmp_path / 'store', progress=progress)
  assert progress.done == 16
  assert {record: record.stat().st_mtime_ns for record in records} == before
  write(source, tmp_path / 'store')
  assert contents(tmp_path / 'store') == reference


@pytest.mark.parametrize(('workers', 'encoding'), [(1, 'raw'), (2, 'raw'), (1, 'jpeg 90')])
@pytest.mark.slow
def test_ten_kills_at_random(insects, tmp_path, workers, encoding):
  here = pathlib.Path(__file__).parent
  finished = subprocess.run(
    [sys.executable, here / 'helpers/killed_writer.py', insects, tmp_path, str(workers), encoding],
    env=os.environ | {'PYTHONPATH': str(here.parent)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
  ('owner', 'name'), [(stored_images.RawImages, 'finish'), (shutil, 'rmtree')]
)
def test_interrupted_publishing(source, tmp_path, reference, monkeypatch, owner, name):
  def publish(job, path):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, fail)
      real(job, path)

  def fail(*arguments, **options):
    raise KeyboardInterrupt

  real = Job.publish
  monkeypatch.setattr(Job, 'publish', publish)
  with pytest.raises(KeyboardInterrupt):
    write(source, tmp_path / 'store')
  monkeypatch.setattr(Job, 'publish', real)
  write(source, tmp_path / 'store')
  assert contents(tmp_path / 'store') == reference


@pytest.mark.parametrize('kind', ['parquet', 'tar', 'zip'])
@pytest.mark.slow
def test_kills_while_packed_images_are_prepared(insects, tmp_path, kind):
  """Died at any moment, unpacking too, it goes on to the same bytes."""
  packed = tmp_path / 'packed'
  pack(insects, packed, kind)
  here = pathlib.Path(__file__).parent
  finished = subprocess.run(
    [sys.executable, here / 'helpers/killed_preparing.py', packed, tmp_path / 'place', '11'],
    env=os.environ | {'PYTHONPATH': str(here.parent)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stderr
  moments, deaths, unpacking = map(int, re.findall(r'\d+', finished.stdout))
  assert moments > 160 and deaths >= moments // 11 / 2
  assert unpacking >= 5 or kind != 'parquet'


def test_left_overs_of_another_job_are_dropped(source, tmp_path, reference):
  with pytest.raises(KeyboardInterrupt):
    write(source, tmp_path / 'store', image_size=24, progress=Stop(30))
  write(source, tmp_path / 'store')
  assert contents(tmp_path / 'store') == reference


def test_a_second_writer_waits(source, tmp_path):
  said = threading.Event()

  class Progress(Console):
    def message(self, line):
      if 'waiting' in line:
        said.set()

  with open(tmp_path / '.store.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(
      target=write, args=(source, tmp_path / 'store'), kwargs={'progress': Progress()}
    )
    thread.start()
    assert said.wait(20) and not (tmp_path / 'store.tmp').exists()
  thread.join(20)
  assert len(open_store(tmp_path / 'store').train) == 60


# What can be wrong with the images.


@pytest.fixture
def broken(tmp_path):
  """An image folder with unreadable files: truncated, empty, and no image."""
  root = write_folder(tmp_path / 'broken')
  for file in ('train/ant/003.png', 'train/cat/019.png', 'validation/bee/000.png'):
    data = (root / file).read_bytes()
    (root / file).write_bytes(data[: len(data) // 2])
  (root / 'train/bee/007.png').write_bytes(b'')
  (root / 'train/bee/008.png').write_text('no image')
  for file in ('cat/003.png', 'ant/017.png', 'cat/017.png'):  # rows 56, 58 and 59, the last
    (root / 'train' / file).write_bytes(b'')
  return root


BROKEN = {'train': [14, 19, 22, 28, 56, 58, 59], 'eval': [7]}  # rows


def test_unreadable_images_are_listed_and_read_again_when_repaired(
  broken, insects, source, tmp_path, reference
):
  with pytest.raises(UserError, match=r'8 unreadable image\(s\)') as caught:
    write(open_folder(broken, 0.25), tmp_path / 'store')
  listing = (tmp_path / 'store.unreadable.txt').read_text()
  for name in ('ant/003.png', 'cat/019.png', 'n/bee/000.png', 'n/bee/007.png', 'n/bee/008.png'):
    assert str(broken) in listing and name in listing
  assert 'ant/003.png' in str(caught.value) and 'and 3 more' in str(caught.value)
  assert not (tmp_path / 'store').exists()
  done = len(list((tmp_path / 'store.tmp/parts').glob('*.npz')))
  assert 0 < done < 11
  shutil.rmtree(broken)
  shutil.copytree(insects, broken)
  write(open_folder(broken, 0.25), tmp_path / 'store')
  images_only = {name: data for name, data in reference.items() if name != 'meta.json'}
  assert images_only.items() <= contents(tmp_path / 'store').items()


def check_skipped(path, source):
  """Every readable image is there once, with its label; the last ones fill the holes."""
  skipped = open_store(path)
  for name, split in (('train', skipped.train), ('eval', skipped.eval)):
    full, bad = getattr(source, name), BROKEN[name]
    count = len(full) - len(bad)
    assert len(split) == count and len(skipped.meta['unreadable'][name]) == len(bad)
    expected = order.permutation(ORDER_SEED, 0, 60) if name == 'train' else np.arange(21)
    fillers = [index for row, index in enumerate(expected) if row >= count and row not in bad]
    expected[[row for row in bad if row < count]] = fillers
    assert np.load(path / name / 'source_index.npy').tolist() == expected[:count].tolist()
    for row, index in enumerate(expected[:count]):
      assert split.labels[row] == full[int(index)].label
      pixels = images.read_image(full[int(index)].data, SIZE, 'crop')
      assert np.array_equal(split.images[row], pixels)
  mean = np.asarray(skipped.train.images, np.float64).mean(axis=0)
  np.testing.assert_allclose(skipped.mean_image, mean, rtol=1e-6)
  verify_store(path)


@pytest.mark.parametrize(('workers', 'rows_per_part'), [(1, 8), (2, 7), (1, 100)])
def test_unreadable_images_are_left_out(broken, tmp_path, workers, rows_per_part):
  source = open_folder(broken, 0.25)
  write(source, tmp_path / 'store', unreadable='skip', workers=workers, rows_per_part=rows_per_part)
  check_skipped(tmp_path / 'store', source)


def test_interrupted_leaving_out(broken, tmp_path, monkeypatch):
  def fail(path, value):
    if 'counts' in value:
      raise KeyboardInterrupt  # holes are filled by now
    real(path, value)

  source, real = open_folder(broken, 0.25), files.write_json
  monkeypatch.setattr(files, 'write_json', fail)
  with pytest.raises(KeyboardInterrupt):
    write(source, tmp_path / 'store', unreadable='skip')
  monkeypatch.setattr(files, 'write_json', real)
  write(source, tmp_path / 'store', unreadable='skip')
  check_skipped(tmp_path / 'store', source)


@pytest.mark.parametrize(
  ('files', 'said'),
  [
    ('train/bee/*', "none of the 20 train images of class 'bee' can be read"),
    ('validation/*/*', 'no readable image to make its eval split'),
  ],
)
def test_a_class_or_split_without_readable_images_is_refused(broken, tmp_path, files, said):
  for file in broken.glob(files):
    file.write_bytes(b'')
  with pytest.raises(UserError, match=said):
    write(open_folder(broken, 0.25), tmp_path / 'store', unreadable='skip')


class Numbers:
  """Gray images of one value; label and failure as told."""

  def __init__(self, label=0, fatal=False):
    self.label = label
    self.fatal = fatal

  def __len__(self):
    return 20

  def __getitem__(self, index):
    if self.fatal and index == 5:
      os.kill(os.getpid(), signal.SIGKILL)
    return Example(np.full((8, 8), index, np.uint8), self.label, f'number {index}')


@pytest.mark.parametrize(('label', 'workers'), [(-1, 1), (3, 2)])
def test_a_label_that_is_no_class(tmp_path, label, workers):
  source = Source('numbers', ('a', 'b', 'c'), Numbers(label), Numbers(), 'x')
  with pytest.raises(UserError, match=rf'number \d+ has label {label}, allowed are 0..2'):
    write(source, tmp_path / 'store', workers=workers)
  with pytest.raises(UserError, match='allowed are 0..2'):
    in_memory_store(source, image_size=8, resize='crop')


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path):
  source = Source('numbers', ('a',), Numbers(fatal=True), Numbers(), 'x')
  with pytest.raises(UserError, match='a preparing process died'):
    write(source, tmp_path / 'store', workers=2)


# What can be wrong with the disk and with the store.


def test_disk_room_is_checked_before_anything_is_written(source, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10_000))
  with pytest.raises(UserError, match='has 10,000 bytes free, the store needs 96,000 more'):
    write(source, tmp_path / 'store')
  assert not (tmp_path / 'store.tmp').exists()


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
  def fail(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(UserError, match='No space left on device; run again to go on from here'):
    write(source, tmp_path / 'store')


@pytest.mark.parametrize(
  ('encoding', 'file', 'places', 'said'),
  [
    (
      'raw',
      'train/images.npy',
      [128 + row * SIZE * SIZE * 3 + 100 for row in (9, 59)],
      'train/images.npy rows 8..15, train/images.npy rows 56..59;',
    ),
    ('jpeg 95', 'train/images-00002.jpegs', [300], 'written: train/images-00002.jpegs;'),
  ],
)
def test_verify_names_what_has_changed(source, tmp_path, encoding, file, places, said):
  write(source, tmp_path / 'store', encoding=encoding)
  verify_store(tmp_path / 'store')
  data = bytearray((tmp_path / 'store' / file).read_bytes())
  for place in places:
    data[place] ^= 4
  (tmp_path / 'store' / file).write_bytes(data)
  with pytest.raises(UserError, match=said):
    verify_store(tmp_path / 'store')


@pytest.mark.parametrize(
  ('encoding', 'damage'),
  [
    ('raw', lambda path: (path / 'meta.json').write_text('{')),
    ('raw', lambda path: (path / 'meta.json').write_text('{"format_version": 1}')),
    ('raw', lambda path: (path / 'mean.npy').write_bytes(b'x')),
    ('raw', lambda path: (path / 'eval/labels.npy').unlink()),
    ('raw', lambda path: os.truncate(path / 'train/images.npy', 1000)),
    ('raw', lambda path: np.save(path / 'train/images.npy', np.zeros((60, 8, 8, 3), np.uint8))),
    ('raw', lambda path: np.save(path / 'train/images.npy', np.array([None]), allow_pickle=True)),
    ('jpeg 90', lambda path: (path / 'train/places.npy').unlink()),
    ('jpeg 90', lambda path: np.save(path / 'train/places.npy', np.zeros((60, 3), np.int64))),
    ('jpeg 90', lambda path: (path / 'eval/images-00001.jpegs').unlink()),
    ('jpeg 90', lambda path: os.truncate(path / 'train/images-00003.jpegs', 500)),
  ],
)
def test_damage_is_seen_when_opening(source, tmp_path, encoding, damage):
  write(source, tmp_path / 'store', encoding=encoding)
  damage(tmp_path / 'store')
  with pytest.raises(UserError, match='is damaged .*: delete it and prepare again') as caught:
    open_store(tmp_path / 'store')
  assert '\n' not in str(caught.value)


def test_no_store_and_another_version(source, tmp_path):
  with pytest.raises(UserError, match='is not a prepared store'):
    open_store(tmp_path / 'absent')
  write(source, tmp_path / 'store')
  meta = json.loads((tmp_path / 'store/meta.json').read_text())
  (tmp_path / 'store/meta.json').write_text(json.dumps(meta | {'format_version': 9}))
  with pytest.raises(UserError, match='has store format 9, this program reads 1'):
    open_store(tmp_path / 'store')


# From a configuration.


def test_preparation_of_a_folder(insects, tmp_path):
  config = data_config(dir=insects, store=tmp_path / 'store')
  first = prepare_store(config, workers=1, progress=Console(quiet=True))
  before = (tmp_path / 'store/meta.json').stat().st_mtime_ns
  again = prepare_store(config, progress=Console(quiet=True))
  assert (tmp_path / 'store/meta.json').stat().st_mtime_ns == before
  assert np.array_equal(first.train.images, again.train.images)
  few = prepare_store(data_config(dir=insects, store=tmp_path / 'store', train_examples=12))
  assert len(few.train) == 12 and len(few.eval) == 21
  assert np.array_equal(few.train.images, first.train.images[:12])
  for changes, match in (
    ({'resize': 'warp'}, 'has resize crop, this configuration wants warp'),
    ({'image_size': 8}, 'has image_size 16'),
    ({'num_classes': 5}, 'num_classes=5'),
    ({'train_examples': 61}, 'train_examples=61 must lie between 0'),
    ({'dir': tmp_path / 'gone', 'image_size': 8}, 'has image_size 16'),
  ):
    with pytest.raises(UserError, match=match):
      prepare_store(data_config(**({'dir': insects, 'store': tmp_path / 'store'} | changes)))


def test_the_data_set_may_be_gone_but_not_another(tmp_path):
  root = write_folder(tmp_path / 'data', train=4, held_out=2)
  config = data_config(dir=root)
  prepare_store(config, workers=1, progress=Console(quiet=True))
  assert store_path(config) == tmp_path / 'data-stores/data-16-crop'
  (root / 'train/ant/000.png').unlink()
  match = 'data has changed since the store .* 12 training and 6 validation images: delete'
  with pytest.raises(UserError, match=match):
    prepare_store(config)
  for away in (lambda: shutil.rmtree(root), root.mkdir):  # no folder, and that of an absent disk
    away()
    assert len(prepare_store(config).train) == 12
    assert preparation.sizes(config, None) == (3, 12, 6)


def test_photos_are_turned_unless_the_classes_are_of_imagenet(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned clockwise, the red half comes to the right
  pixels = np.zeros((40, 40, 3), np.uint8)
  pixels[:20, :, 0] = 255
  for names in (('ant', 'bee'), ('n01440764', 'n01443537')):
    root = tmp_path / names[0]
    for name in names:
      (root / name).mkdir(parents=True)
      for number in range(2):
        Image.fromarray(pixels).save(root / name / f'{number}.png', exif=exif)
    made = prepare_store(
      data_config(dir=root, validation_fraction=0.5), progress=Console(quiet=True)
    )
    upright = names[0] == 'ant'
    assert made.upright == upright and made.meta['orientation'] in ('exif', 'as stored')
    red = made.train.images[0][:, :, 0]
    assert np.array_equal(red[3], red[12]) == upright
    # What predicts from a run of this store does the same.
    settings = config.default()
    settings.input.crop = SIZE
    write_preprocessing(tmp_path / 'preprocessing.npz', make_preprocessing(settings, made))
    kept = read_preprocessing(tmp_path / 'preprocessing.npz')
    assert kept.upright is upright
    (seen,) = next(images.batches([root / names[0] / '0.png'], SIZE, 'crop', 1, kept.upright))
    assert np.array_equal(seen, made.train.images[0])


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_packed_images_are_listed_once(insects, tmp_path, monkeypatch, kind):
  """Until a file of theirs, or the part to be held out, changes."""
  pack(insects, tmp_path / 'packed', kind)
  config = data_config(dir=tmp_path / 'packed', store=tmp_path / 'store')
  opened, real = [], folder_formats.open_images

  def open_images(*arguments):
    opened.append(arguments)
    return real(*arguments)

  monkeypatch.setattr(folder_formats, 'open_images', open_images)

  def times():
    opened.clear()
    prepare_store(config, progress=Console(quiet=True), workers=1)
    return len(opened)

  assert [times(), times(), times()] == [1, 0, 0]
  path = sorted((tmp_path / 'packed').glob('train*'))[0]
  os.utime(path, ns=(1, 1))
  assert [times(), times()] == [1, 0]  # a copy: the same images
  config.validation_fraction = 0.5
  assert times() == 1  # which there are validation images for
  if kind == 'tar':
    data = path.read_bytes()
    assert data.count(b'ant' + bytes(509)) == 10
    path.write_bytes(data.replace(b'ant' + bytes(509), b'bee' + bytes(509), 1))  # of the same size
  else:
    with zipfile.ZipFile(path, 'a') as archive:
      archive.writestr('train/ant/new.png', b'?')
  with pytest.raises(UserError, match='packed has changed since the store'):
    times()
  shutil.rmtree(tmp_path / 'packed')
  assert times() == 1  # which finds none


def test_store_path():
  config = data_config(source='tfds', name='cats_vs_dogs:4.0.1', dir='/data/tfds', image_size=256)
  assert store_path(config) == pathlib.Path('/data/tfds-stores/cats_vs_dogs-4.0.1-256-crop')
  assert store_path(data_config(store='~/x')) == pathlib.Path('~/x').expanduser()


# What the user sees.


def test_progress(broken, tmp_path):
  stream = io.StringIO()
  config = data_config(dir=broken, store=tmp_path / 'store', unreadable='skip')
  with contextlib.redirect_stderr(stream):
    prepare_store(config, workers=1, progress=Console())
  text = stream.getvalue()
  assert 'preparing broken 16x16: 81 of 81, ' in text and '0s left' in text
  assert '8 unreadable images were left out' in text


def test_a_slow_disk_is_no_silent_one(insects, tmp_path, monkeypatch):
  """A line before anything is read, and one each second, by the clock of a disk that takes 0.25 s.

  That is for facts of a file while they are listed, and for its content while they are prepared.
  """
  clock, said = 0.0, []

  def wait():
    nonlocal clock
    clock += 0.25

  class Entry:
    def __init__(self, entry):
      self._entry = entry

    def __getattr__(self, name):
      return getattr(self._entry, name)

    def stat(self):
      wait()
      return self._entry.stat()

  class Log(io.StringIO):
    def write(self, text):
      said.extend([(clock, text.strip())] if text.strip() else [])
      return super().write(text)

  def scandir(folder):
    return [Entry(entry) for entry in os.scandir(folder)]

  def slow_open(*arguments):
    wait()
    return open(*arguments)

  slow = types.SimpleNamespace(**(vars(os) | {'scandir': scandir}))
  monkeypatch.setattr(listing, 'os', slow)
  monkeypatch.setattr(image_folder, 'open', slow_open, raising=False)
  monkeypatch.setattr(terminal, 'time', types.SimpleNamespace(monotonic=lambda: clock))
  config = data_config(dir=insects, store=tmp_path / 'store')
  with contextlib.redirect_stderr(Log()):
    prepare_store(config, workers=1, progress=Console())
  times, lines = zip(*said, strict=True)
  assert times[0] == 0 and lines[0] == f'preparing {tmp_path}/store'
  assert clock == 2 * 81 * 0.25 and max(np.diff([*times, clock])) < 1.3
  assert lines[1] == f'listing {insects}: 4, 4 per second'
  assert lines[-1].startswith('preparing insects 16x16: 81 of 81, ')


@pytest.mark.parametrize('workers', [1, 2])
def test_every_row_is_counted(source, tmp_path, workers):
  counted = []

  class Count(Console):
    @contextlib.contextmanager
    def count(self, title, total=None, done=0):
      yield lambda n: counted.append(n)
      assert sum(counted) == total - done == 81

  write(source, tmp_path / 'store', workers=workers, progress=Count(quiet=True))
  assert workers > 1 or counted == [1] * 81
