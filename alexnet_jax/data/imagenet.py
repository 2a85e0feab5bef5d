"""What is known of ImageNet ILSVRC-2012 besides its images: which class each validation image
shows, and what the classes are called.

Classes are WNIDs such as n01440764, numbered in the order of their names, as in TFDS, Caffe and
torchvision. The devkit numbers them in another order (ILSVRC2012_ID), so its ground truth means
nothing without its meta.mat.
"""

import csv
import importlib.resources
import pathlib
import re
from collections.abc import Iterable

from alexnet_jax.errors import UserError

GROUND_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'
KAGGLE_TRUTH = 'LOC_val_solution.csv'
DEVKIT = 'meta.mat'
# Caffe's list, Kaggle's and ImageNet's own: a line each of WNID and words.
NAME_FILES = ('synset_words.txt', 'LOC_synset_mapping.txt', 'words.txt')
KNOWN_FILES = frozenset((GROUND_TRUTH, KAGGLE_TRUTH, DEVKIT, *NAME_FILES))
KAGGLE_IMAGES = ('ILSVRC', 'Data', 'CLS-LOC')  # in what Kaggle's archive unpacks to
VALIDATION_IMAGES = 50_000
FOLDERS = ('', 'devkit/data', 'ILSVRC2012_devkit_t12/data')  # where a devkit is looked for
WNID = re.compile(r'n\d{8}')
VALIDATION_FILE = re.compile(r'ILSVRC2012_val_(\d{8})\.jpe?g', re.IGNORECASE)


def published_classes() -> tuple[str, ...]:
  """The 1,000 WNIDs in their order, as TFDS ships them."""
  return tuple(_shipped('labels.txt'))


def kaggle_images(folder: pathlib.Path) -> pathlib.Path | None:
  """The folder of train/ and val/ in Kaggle's ImageNet, of which `folder` is any level.

  None if it is something else.
  """
  for depth in range(len(KAGGLE_IMAGES) + 1):
    images = folder.joinpath(*KAGGLE_IMAGES[depth:]).resolve()
    if _is_kaggle(images) and (images / 'train').is_dir() and (images / 'val').is_dir():
      return images
  return None


def _is_kaggle(images: pathlib.Path) -> bool:
  return images.parts[-len(KAGGLE_IMAGES) :] == KAGGLE_IMAGES


def validation_classes(root: pathlib.Path, names: Iterable[str]) -> list[str]:
  """The WNID of each validation image.

  It follows from the number in the image's name: by the devkit's ground truth and meta.mat or by
  Kaggle's solution if they lie in `root` (see FOLDERS), else by the list for all 50,000 that TFDS
  ships.

  Args:
    root: folder of the data set.
    names: names of image files, such as ILSVRC2012_val_00000001.JPEG.

  Raises:
    UserError: another name, a number without a label, or a ground truth that cannot be read.
  """
  labels, origin = validation_labels(root)
  result = []
  for name in names:
    match = VALIDATION_FILE.fullmatch(name)
    if not match or not 0 < int(match[1]) <= len(labels) or not labels[int(match[1]) - 1]:
      raise UserError(
        f'{name} is not ILSVRC2012_val_00000001.JPEG to {len(labels):08} (labels of {origin}): '
        'remove it, or put validation images into folders named after their class'
      )
    result.append(labels[int(match[1]) - 1])
  return result


def validation_labels(root: pathlib.Path) -> tuple[list[str], str]:
  """WNIDs of the validation images in the order of their numbers, and where that is known from.

  A number that Kaggle's solution leaves out has ''.
  """
  truth = _find(root, (GROUND_TRUTH, KAGGLE_TRUTH))
  if truth is not None and truth.name == KAGGLE_TRUTH:
    return _read_kaggle(truth), str(truth)
  if truth is None:
    return _shipped('validation_labels.txt'), 'tensorflow-datasets'
  devkit = truth.with_name(DEVKIT)
  if not devkit.is_file():
    raise UserError(
      f'{truth} numbers classes in the order of the devkit, which is in {DEVKIT}: put that beside '
      'it, or remove it to use the published labels of the same images'
    )
  wnids = {number: wnid for number, wnid, _ in _read_devkit(devkit)}
  try:
    return [wnids[int(line)] for line in truth.read_text().split()], str(truth)
  except (KeyError, UnicodeDecodeError, ValueError) as error:
    raise UserError(
      f'{truth} has a line that is no class of {devkit} ({error}): fetch the devkit again'
    ) from error


def class_names(classes: tuple[str, ...], roots: Iterable[pathlib.Path]) -> tuple[str, ...]:
  """Words for classes that are WNIDs, from the first list found (NAME_FILES, or the devkit).

  Args:
    classes: names of classes.
    roots: where to look, see FOLDERS.

  Returns:
    As many as `classes`, a WNID where the list lacks it; none if there is no list, or `classes` are
    words already.
  """
  if not all(WNID.fullmatch(name) for name in classes):
    return ()
  for root in roots:
    file = _find(root, (*NAME_FILES, DEVKIT))
    if file is not None:
      words = _read_words(file)
      return tuple(words.get(name, name) for name in classes)
  return ()


def _find(root: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
  """The first of these files in `root`, in a devkit below it, or beside Kaggle's ILSVRC/."""
  folders = [root / folder for folder in FOLDERS]
  if _is_kaggle(root):
    folders.append(root.parents[len(KAGGLE_IMAGES) - 1])
  files = (folder / name for name in names for folder in folders)
  return next((file for file in files if file.is_file()), None)


def _read_words(file: pathlib.Path) -> dict[str, str]:
  if file.name == DEVKIT:
    return {wnid: words for _, wnid, words in _read_devkit(file)}
  lines = (line.split(None, 1) for line in file.read_text(errors='replace').splitlines())
  return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def _read_kaggle(file: pathlib.Path) -> list[str]:
  """WNIDs by number from lines such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
  found = {}
  with open(file, newline='', errors='replace') as lines:
    for line, row in enumerate(csv.reader(lines), 1):
      if row[:1] in ([], ['ImageId']):
        continue
      image = VALIDATION_FILE.fullmatch(f'{row[0]}.JPEG')
      wnid = WNID.match(row[-1])
      if not image or not wnid or not 0 < int(image[1]) <= VALIDATION_IMAGES:
        raise UserError(
          f'{file}, line {line}: {",".join(row)[:80]!r} is not like'
          " 'ILSVRC2012_val_00000001,n01751748 111 108 441 193': fetch it again"
        )
      found[int(image[1])] = wnid[0]
  return [found.get(number, '') for number in range(1, max(found, default=0) + 1)]


def _read_devkit(file: pathlib.Path) -> list[tuple[int, str, str]]:
  """ILSVRC2012_ID, WNID and words of each class in a meta.mat."""
  from scipy import io  # takes half a second to import

  try:
    synsets = io.loadmat(file, squeeze_me=True)['synsets']
    return [
      (int(synset['ILSVRC2012_ID']), str(synset['WNID']), str(synset['words']))
      for synset in synsets
    ]
  except Exception as error:  # the parser fails in many ways on damaged bytes
    raise UserError(
      f'{file} is not the {DEVKIT} of ILSVRC-2012 ({type(error).__name__}): fetch it again'
    ) from error


def _shipped(name: str) -> list[str]:
  """Lines of a file that TFDS ships with its builder."""
  folder = importlib.resources.files('tensorflow_datasets') / 'datasets' / 'imagenet2012'
  return (folder / name).read_text().split()
