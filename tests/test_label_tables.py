"""Tables of files and labels, written by csv: each image has its label, or a line says why."""

import csv
import zipfile

import numpy as np
import pytest
from helpers.tiny_data import data_config, encoded, refused, write_folder

from alexnet_jax.data.preparation import open_source


def image(number):
  """An image file of one color, which is its number."""
  return encoded(np.full((20, 24, 3), number, np.uint8), 'PNG')


def write(root, numbers, folder='', name='{}.png'):
  """Images in one folder, called by their number."""
  (root / folder).mkdir(parents=True, exist_ok=True)
  for number in numbers:
    (root / folder / name.format(number)).write_bytes(image(number))


def table(path, rows, **options):
  with open(path, 'w', newline='') as file:
    csv.writer(file, **options).writerows(rows)
  return path


def labels(source):
  """Number of each image -> its class, of both splits."""
  found = [split[i] for split in (source.train, source.eval) for i in range(len(split))]
  numbers = {image(number): number for number in range(20)}
  return {numbers[example.data]: source.classes[example.label] for example in found}


EXPECTED = {n: ('ant', 'bee')[n % 2] for n in range(8)}


@pytest.mark.parametrize(
  ('header', 'row'),
  [
    (['image_id', 'label'], ['{0}.png', '{1}']),
    (['id', 'breed'], ['{0}', '{1}']),
    (['', 'Class', 'File Name', 'width'], ['{0}', '{1}', 'images/{0}.png', '24']),
    (None, ['./{0}.png', '{1}']),
    (['labels', 'filepath'], ['{1}', 'C:\\data\\images\\{0}.png']),
    (['path', 'category'], ['/kaggle/input/set/images/{0}.png', '{1}']),
  ],
)
def test_columns(tmp_path, header, row):
  """Names as Kaggle's contests have them, with and without ending and folder."""
  write(tmp_path, range(8), 'images')
  rows = [[cell.format(n, label) for cell in row] for n, label in EXPECTED.items()]
  table(tmp_path / 'train.csv', [header, *rows] if header else rows)
  source = open_source(data_config(dir=tmp_path))
  assert source.classes == ('ant', 'bee') and labels(source) == EXPECTED
  assert (len(source.train), len(source.eval)) == (6, 2)
  assert source.found == (
    '6 training and 2 validation images (0.25 of each class) of 2 classes from train.csv, the'
    ' smallest ant with 4, the largest ant with 4'
  )
  assert open_source(data_config(dir=tmp_path / 'train.csv')).fingerprint == source.fingerprint


def test_splits_and_what_is_not_used(tmp_path):
  """CIFAR-10 as Kaggle has it: the same names in train/ and test/; numbers in their order."""
  write(tmp_path, range(8), 'train')
  write(tmp_path, range(4), 'test')
  table(tmp_path / 'trainLabels.csv', [['id', 'label'], *([n, 10 - n % 2] for n in range(8))])
  table(tmp_path / 'sampleSubmission.csv', [['id', 'label'], *([n, 9] for n in range(4))])
  table(tmp_path / 'meta.csv', [['weather'], ['sun']])
  table(tmp_path / 'classes.csv', [['id', 'name'], ['99', 'nine'], ['100', 'ten']])
  source = open_source(data_config(dir=tmp_path))
  assert source.classes == ('9', '10') and labels(source) == {n: str(10 - n % 2) for n in range(8)}
  assert source.found.endswith('; ignored: 4 image(s) that are not in trainLabels.csv, 3 .csv')
  # A table of validation images, from a German spreadsheet, with an empty line and a lost label.
  (tmp_path / 'val.csv').write_text('\ufeffFile;Label\r\n1.png;9\r\n;\r\n2;10\r\n3.png;\r\n')
  write(tmp_path, (11, 12, 13), 'val', '{}.png')
  for number in (1, 2, 3):
    (tmp_path / f'val/{number + 10}.png').rename(tmp_path / f'val/{number}.png')
  source = open_source(data_config(dir=tmp_path))
  assert labels(source) == {n: str(10 - n % 2) for n in range(8)} | {11: '9', 12: '10'}
  assert (len(source.train), len(source.eval)) == (8, 2) and '(val.csv) of 2' in source.found
  assert '1 image(s) without a label, 4 image(s) that are not in tr' in source.found
  table(tmp_path / 'val.csv', [['file', 'label'], ['1', '9'], ['2', 'cat']])
  refused("val.csv has 1 class.es. that .*trainLabels.csv lacks, the first is 'cat'", dir=tmp_path)


def test_folders_of_classes_need_no_table(tmp_path):
  """A table of images in many folders says nothing that these do not, but may mix the splits."""
  root = write_folder(tmp_path, train=3, held_out=2)
  rows = [[file.relative_to(root), file.parent.name] for file in root.rglob('*.png')]
  table(root / 'birds.csv', [['filepaths', 'labels'], *rows])
  source = open_source(data_config(dir=root))
  assert (len(source.train), len(source.eval)) == (9, 6)
  assert source.found.endswith('ignored: 1 .csv')


def test_in_a_zip(tmp_path):
  write(tmp_path, range(8), 'images')
  table(tmp_path / 'labels.csv', [['file', 'label'], *EXPECTED.items()])
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
    for file in (tmp_path / 'labels.csv', *(tmp_path / 'images').iterdir()):
      archive.write(file, f'set/{file.relative_to(tmp_path)}')
  source = open_source(data_config(dir=tmp_path / 'set.zip'))
  assert labels(source) == EXPECTED and '2 classes from labels.csv, ' in source.found


def test_labels_make_another_data_set(tmp_path):
  """Also where the order of the files stays the same."""
  write(tmp_path, range(8))
  found = set()
  for border in (4, 5, 4):
    rows = [[f'{n}.png', 'ab'[n >= border]] for n in range(8)]
    table(tmp_path / 'labels.csv', [['file', 'label'], *rows])
    found.add(open_source(data_config(dir=tmp_path)).fingerprint)
  assert len(found) == 2


def test_refusals(tmp_path):
  write(tmp_path, range(4), 'images')
  good = [['file', 'label'], *([f'{n}.png', 'ab'[n % 2]] for n in range(4))]

  def fails(match, rows, name='labels.csv', **options):
    table(tmp_path / name, rows, **options)
    refused(match, dir=tmp_path)
    (tmp_path / name).unlink()

  fails("labels.csv, line 6: '9.png' is not below .*move it elsewhere", [*good, ['9.png', 'a']])
  fails("line 7: '0' is in labels.csv, line 2, as well", [*good, [], ['0', 'b']])
  fails('labels.csv, line 6 has 1 column.s. in place of 2', [*good, ['3.png']])
  fails('labels.csv has no training image with a label', [[row[0], ''] for row in good])
  table(tmp_path / 'val.csv', good)
  fails("val.csv, line 2: '0.png' is in train.csv, line 2, as well", good, 'train.csv')
  table(tmp_path / 'boxes.csv', [['xmin', 'ymin', 'xmax'], [1, 2, 3]])
  refused('boxes.csv has no columns of files and labels: call', dir=tmp_path / 'boxes.csv')
  (tmp_path / 'nul.csv').write_bytes(b'file,label\n"' + b'x' * 200_000 + b'",a\n')
  refused('nul.csv cannot be read as a table .field larger', dir=tmp_path / 'nul.csv')
  (tmp_path / 'images/0.jpg').write_bytes(image(0))
  (tmp_path / 'val.csv').unlink()
  (tmp_path / 'nul.csv').unlink()
  fails("line 2: '0' .* several are called so", [['id', 'label'], ['0', 'a'], ['1', 'b']])
