"""Which files of a packed data set hold the training images, and which the validation images."""

import pathlib
import re
from collections.abc import Sequence

from alexnet_jax.errors import UserError

TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'
NAMES = {  # that folders of them have
  TRAIN: ('train', 'training'),
  VALIDATION: ('val', 'valid', 'validation'),
  TEST: ('test', 'testing'),
}
_SPLITS = {name: split for split, names in NAMES.items() for name in names} | {'dev': VALIDATION}
_SPLIT = re.compile(rf'(?:^|[-_.])({"|".join(_SPLITS)})(?=$|[-_.\d])', re.IGNORECASE)
_NUMBERED = re.compile(r'(.*?)(\d+)(?:-of-(\d+))?')


def find_splits(
  root: pathlib.Path, paths: Sequence[pathlib.Path]
) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
  """Tells which files are of which split, by their names, or by those of their folders.

  Args:
    root: the folder of the data set, or its only file.
    paths: files of images, at any depth.

  Returns:
    Files of the training, and if there are any of the validation images; what is not used.

  Raises:
    UserError: a file is missing in a numbered row, there are files of several data sets, or none
      to train on.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for path in sorted(paths):
    inner = path.relative_to(root) if path != root else pathlib.Path(path.name)
    words = [inner.name.split('.')[0], *reversed(inner.parts[:-1])]
    matches = (_SPLIT.search(word) for word in words)
    split = next((_SPLITS[match[1].lower()] for match in matches if match), '')
    found.setdefault(split, []).append(path)
  if TRAIN not in found and '' in found:
    found[TRAIN] = found.pop('')
  if TRAIN not in found:
    raise UserError(
      f'{root} has no files to train on: name the folder, or call them train-0000 and so on;'
      f' there are {", ".join(path.name for path in list(paths)[:3])}'
    )
  for kept in found.values():
    _check_complete(root, kept)
  validation = next((name for name in (VALIDATION, TEST) if name in found), '')
  used = {TRAIN: found.pop(TRAIN)}
  if validation:
    used[validation] = found.pop(validation)
  return used, [
    f'{len(left):,} file(s) {left[0].name}{" and so on" * (len(left) > 1)}'
    for left in found.values()
  ]


def _check_complete(root: pathlib.Path, paths: list[pathlib.Path]) -> None:
  folders = sorted({str(path.parent) for path in paths})
  if len(folders) > 1:
    raise UserError(
      f'{root} holds several data sets, in {", ".join(folders[:4])}: give data.dir one of them'
    )
  rows: dict[str, set[int]] = {}
  for path in paths:
    match = _NUMBERED.fullmatch(path.name.split('.')[0])
    if match:
      numbers = rows.setdefault(f'{match[1]}*{match[3] or ""}', set())
      numbers.add(int(match[2]))
      numbers.add(int(match[3]) if match[3] else -1)
  for row, numbers in rows.items():
    stem, _, total = row.partition('*')
    there = numbers - {-1, int(total or -1)} if total else numbers - {-1}
    expected = range(int(total)) if total else range(min(there), max(there) + 1)
    if missing := sorted(set(expected) - there):
      raise UserError(
        f'{paths[0].parent} lacks {len(missing)} of the {len(expected)} files {stem}*, the first'
        f' is number {missing[0]}: fetch what is missing'
      )
