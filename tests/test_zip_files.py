"""Zip archives, written by zipfile: the store is that of a folder of the same images."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from helpers.tiny_data import data_config, encoded, refused, write_folder, write_images

from alexnet_jax.data.preparation import eval_names, open_source, prepare_store
from alexnet_jax.errors import UserError
from alexnet_jax.terminal import Console

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def pack(folder, path, *, inside='', method=DEFLATED, names=None):
  """A zip of the files below a folder, those of `names` in their order; `inside` is put before."""
  path.parent.mkdir(parents=True, exist_ok=True)
  found = sorted(file for file in folder.rglob('*') if file.is_file())
  with zipfile.ZipFile(path, 'w', method) as archive:
    for file in found if names is None else map(folder.joinpath, names):
      archive.write(file, f'{inside}{file.relative_to(folder)}')
  return path


def rows(place):
  """The images, labels and indices of a store."""
  files = (f'{split}/{name}.npy' for split in ('train', 'eval') for name in ('images', 'labels'))
  return {file: (place / file).read_bytes() for file in files}


def prepared(root, store, **changes):
  config = data_config(dir=root, store=store, **changes)
  return prepare_store(config, progress=Console(quiet=True), workers=1)


@pytest.mark.parametrize('method', [STORED, DEFLATED], ids=['stored', 'deflated'])
@pytest.mark.parametrize('inside', ['', 'deep/data/'])
def test_the_store_is_that_of_the_folder(tmp_path, method, inside):
  """Splits; classes alone; and names of files that say the class, each as in a folder."""
  both = write_folder(tmp_path / 'both', train=8, held_out=3)
  classes = shutil.copytree(both / 'train', tmp_path / 'classes')
  flat = tmp_path / 'flat'
  flat.mkdir()
  for name in ('cat', 'dog'):
    write_images(flat / 'one', 8)
    for file in (flat / 'one').iterdir():
      file.rename(flat / f'{name}_{file.name}')
    (flat / 'one').rmdir()
  for folder in (both, classes, flat):
    packed = pack(folder, tmp_path / f'{folder.name}.zip', inside=inside, method=method)
    prepared(folder, tmp_path / 'one')
    found = prepared(packed, tmp_path / 'other')
    assert rows(tmp_path / 'one') == rows(tmp_path / 'other')
    assert found.classes == open_source(data_config(dir=folder)).classes
    config = data_config(dir=packed, store=tmp_path / 'other')
    inner = eval_names(data_config(dir=folder, store=tmp_path / 'one'), found)
    assert eval_names(config, found) == inner and not inner[0].startswith('/')
    for store in ('one', 'other'):
      shutil.rmtree(tmp_path / store)
  assert not list(tmp_path.glob('*.tmp'))  # nothing was unpacked
  source = open_source(data_config(dir=packed))
  assert source.found.startswith(f'zip file, at {packed}: 12 training and 4 validation images')
  again = pickle.loads(pickle.dumps(source.train))
  assert [again[i].data for i in range(12)] == [source.train[i].data for i in range(12)]


def test_several_archives_and_what_else_is_in_them(tmp_path):
  """Kaggle's dogs-vs-cats, packed on a Mac and on Windows; images beside their archive win."""
  for name, count in (('train', 4), ('test1', 2)):
    folder = tmp_path / 'files' / name
    write_images(folder, count)
    for file in sorted(folder.iterdir()) if name == 'train' else ():
      number = int(file.stem)
      file.rename(folder / f'{("cat", "dog")[number % 2]}.{number}.png')
    path = pack(folder, tmp_path / f'packed/{name}.zip', inside=f'{name}/')
    with zipfile.ZipFile(path, 'a') as archive:
      archive.writestr(f'__MACOSX/{name}/._cat.0.png', b'?')
      archive.writestr(f'{name}\\.DS_Store', b'?')
      archive.writestr(f'{name}/notes.txt', b'?')
  config = data_config(dir=tmp_path / 'packed', validation_fraction=0.5)
  source = open_source(config)
  assert source.classes == ('cat', 'dog') and (len(source.train), len(source.eval)) == (2, 2)
  assert source.found == (
    f'zip files, at {tmp_path}/packed: 2 training and 2 validation images (0.5 of each class) of 2'
    ' classes, the smallest cat with 2, the largest cat with 2; ignored: test1/ with 2 images of'
    ' unknown class, 2 .txt, 4 hidden'
  )
  write_images(tmp_path / 'packed/bee', 3)
  write_images(tmp_path / 'packed/ant', 3)
  source = open_source(config)
  assert source.classes == ('ant', 'bee') and source.found.endswith('; ignored: 2 .zip')


def test_imagenet_as_kaggle_packs_it(tmp_path):
  """Its archive as it is fetched: folders of WNIDs, flat validation images, tables of boxes."""
  image, wnids = encoded(np.zeros((9, 9, 3), np.uint8)), ('n01440764', 'n01751748')
  deep, path = 'ILSVRC/Data/CLS-LOC', tmp_path / 'imagenet-object-localization-challenge.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('ILSVRC/Annotations/CLS-LOC/val/1.xml', b'<annotation/>')
    for wnid in wnids:
      for number in range(2):
        archive.writestr(f'{deep}/train/{wnid}/{wnid}_{number}.JPEG', image)
    archive.writestr(f'{deep}/val/ILSVRC2012_val_00000001.JPEG', image)
    archive.writestr(f'{deep}/test/ILSVRC2012_test_00000001.JPEG', image)
    boxes = ''.join(f'{wnid}_{n},{wnid} 1 2 3 4\n' for wnid in wnids for n in range(2))
    archive.writestr('LOC_train_solution.csv', f'ImageId,PredictionString\n{boxes}')
    archive.writestr('LOC_val_solution.csv', 'ImageId,PredictionString\nILSVRC2012_val_1,a 1 2\n')
    archive.writestr('LOC_sample_submission.csv', 'ImageId,PredictionString\nx,a\n')
    archive.writestr('LOC_synset_mapping.txt', 'n01440764 tench\n')
  source = open_source(data_config(dir=path))
  assert source.classes == wnids and source.train.labels == (0, 0, 1, 1)
  assert source.eval.labels == (1,)  # as published
  assert source.found.endswith('ignored: test/ with 1 images, 2 .csv, 1 .xml')


def test_other_content_is_another_data_set(tmp_path):
  """The same names and sizes, but other bytes; not the order in the archive."""
  folder = write_folder(tmp_path / 'folder', train=4, held_out=2)
  names = sorted(str(f.relative_to(folder)) for f in folder.rglob('*.png'))
  path = pack(folder, tmp_path / 'a.zip', names=names)
  before = open_source(data_config(dir=path)).fingerprint
  pack(folder, path, names=names[::-1], method=STORED)
  assert open_source(data_config(dir=path)).fingerprint == before
  data = bytearray((folder / names[0]).read_bytes())
  data[-1] ^= 1
  (folder / names[0]).write_bytes(data)
  pack(folder, path, names=names)
  assert open_source(data_config(dir=path)).fingerprint != before


def test_damage(tmp_path):
  """An archive cut anywhere is refused; an image damaged in one is named, and can be skipped."""
  folder = write_folder(tmp_path / 'folder', train=4, held_out=2)
  path = pack(folder, tmp_path / 'a.zip', method=STORED)
  data = path.read_bytes()
  for part in (0.0, 0.3, 0.7, 0.99):
    path.write_bytes(data[: int(len(data) * part)])
    refused('a.zip is cut short, damaged, or no zip file .*fetch it again', dir=path)
  image = (folder / 'train/bee/001.png').read_bytes()
  place = data.index(image) + len(image) // 2
  path.write_bytes(data[:place] + b'?' + data[place + 1 :])
  with pytest.raises(UserError, match=r'1 unreadable .*a.zip/train/bee/001.png is damaged: its'):
    prepared(path, tmp_path / 'store')
  assert len(prepared(path, tmp_path / 'store', unreadable='skip').train) == 11
  source = open_source(data_config(dir=path))
  path.write_bytes(data[:200])
  with pytest.raises(UserError, match='a.zip can no longer be read .it was cut off'):
    source.eval[5]
  path.unlink()
  with pytest.raises(UserError, match='a.zip can no longer be read .*No such file'):
    source.eval[0]


def test_refusals(tmp_path):
  image = encoded(np.zeros((9, 9, 3), np.uint8), 'PNG')

  def write(name, entries, method=STORED):
    with zipfile.ZipFile(tmp_path / name, 'w', method) as archive:
      for file, data in entries:
        archive.writestr(file, data)
    return tmp_path / name

  path = write('nested.zip', [('train.zip', b'PK'), ('test.zip', b'PK')])
  refused('has no images .*, but 2 .zip: where those are archives, unpack it', dir=path)
  refused('has no images .*, but nothing', dir=write('empty.zip', []))
  path = write('lzma.zip', [('cat/1.png', image)], zipfile.ZIP_LZMA)
  refused("'cat/1.png' is of method 14, allowed are stored and deflated", dir=path)
  path = write('twice.zip', [('cat/1.png', image), ('./cat/1.png', image)])
  refused("has two files 'cat/1.png'", dir=path)
  path = write('secret.zip', [('cat/1.png', image), ('dog/1.png', image)])
  path.write_bytes(path.read_bytes().replace(b'PK\1\2\24\3\24\0\0\0', b'PK\1\2\24\3\24\0\1\0'))
  refused("'cat/1.png' is encrypted", dir=path)
  refused('has no class folders', dir=write('one.zip', [('1.png', image), ('2.png', image)]))
