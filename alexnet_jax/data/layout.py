"""Tells folders of classes from folders of splits, such as train/ and val/."""

import dataclasses
import pathlib

from alexnet_jax.data.listing import Listing
from alexnet_jax.errors import UserError

_ROLES = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """The splits of an image folder.

  Attributes:
    train: folder of the training classes; '' if they are at the top.
    held_out: folder of the validation images; '' if a share of each class is to be held out.
    ignored: what is not used, and why, for the user.
  """

  train: str
  held_out: str
  ignored: tuple[str, ...]


def find_layout(root: pathlib.Path, listing: Listing) -> Layout:
  """Finds the splits of the image folder `root` by the names of folders and by what they hold.

  Raises:
    UserError: it can be read in several ways, or in none.
  """
  direct, top = listing.children()
  kids = {name: {f.split('/')[1] for f in files if f.count('/') > 1} for name, files in top.items()}
  roles: dict[str, list[str]] = {'train': [], 'validation': [], 'test': []}
  for name in sorted(top):
    if role := _ROLES.get(name.lower()):
      roles[role].append(name)
  others = [name for name in sorted(top) if name.lower() not in _ROLES and top[name]]
  held_out = roles['validation'] or roles['test']
  for names in (roles['train'], held_out):
    if len(names) > 1:
      raise UserError(f'{root} has both {names[0]}/ and {names[1]}/: leave one of them')
  ignored = [f'{len(direct):,} image(s) in no class folder'] if direct else []

  train = next(iter(roles['train']), '')
  if train and not held_out and top[train] and not kids[train]:
    train = ''  # a class of that name
  if not train:
    _check_classes(root, held_out, kids)
    return Layout('', '', tuple(ignored))
  if not held_out:
    _check_alone(root, train, others, kids)
  used = next(iter(held_out), '')
  unused = [*others, *(roles['test'] if roles['validation'] else ())]
  ignored += [f'{name}/ with {len(top[name]):,} images, since {used}/ is used' for name in unused]
  empty = [name for name in sorted(top) if name.lower() not in _ROLES and not top[name]]
  ignored += [f'{name}/ without images' for name in empty]
  return Layout(train, used, tuple(ignored))


def _check_classes(root: pathlib.Path, held_out: list[str], kids: dict[str, set[str]]) -> None:
  """Raises UserError if folders at the top do not look like classes."""
  if held_out:
    raise UserError(f'{root} has {held_out[0]}/ but no train/: add train/, or name its parent')
  holders: dict[str, list[str]] = {}
  for name in sorted(kids):
    for kid in kids[name]:
      holders.setdefault(kid, []).append(name)
  shared: dict[tuple[str, ...], str] = {}
  for kid in sorted(kid for kid, names in holders.items() if len(names) > 1):
    pair = tuple(holders[kid][:2])
    if pair in shared:
      raise UserError(
        f'{root}: {pair[0]}/ and {pair[1]}/ both hold {shared[pair]}/ and {kid}/, as parts of a'
        ' data set do: call them train/ and validation/; if they are classes, move all classes'
        ' into train/'
      )
    shared[pair] = kid


def _check_alone(
  root: pathlib.Path, train: str, others: list[str], kids: dict[str, set[str]]
) -> None:
  """Raises UserError if something beside a training part may be its other part, or a class."""
  for name in others:
    shared = sorted(kids[train] & kids[name])
    if shared:
      raise UserError(
        f'{root}: {train}/ and {name}/ both hold {shared[0]}/: if {name}/ is the validation part,'
        ' call it validation/, else remove it'
      )
  if others:
    raise UserError(
      f'{root} has {train}/, which holds folders as a part of a data set does, and {others[0]}/'
      ' beside it: leave train/ and validation/, or class folders alone; a class called'
      f' {train} goes into train/{train}/'
    )
