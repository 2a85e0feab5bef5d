"""Lists checkpoints and their health, unfinished and damaged ones too."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.errors import UserError
from alexnet_jax.run.checkpoint import KINDS
from alexnet_jax.run.checkpoint_files import DamagedError, read_leaves, read_record

_STATES = {
  'damaged': 'damaged, set aside',
  '.saving': 'unfinished',
  '.deleting': 'being deleted',
  '.replaced': 'being replaced',
}


class ListedCheckpoint(NamedTuple):
  """`health` is 'ok' (all verified), 'complete' (sizes agree) or what is wrong."""

  kind: str
  step: int
  bytes: int
  metrics: dict[str, float]
  health: str


def list_checkpoints(directory: Path, *, verify: bool = False) -> list[ListedCheckpoint]:
  """Lists all that is in a directory of `Checkpoints`, also while a job is writing there.

  Args:
    directory: what `Checkpoints` was given.
    verify: check every checksum instead of only the sizes.

  Raises:
    UserError: there is no such directory.
  """
  if not directory.is_dir():
    raise UserError(f'no checkpoints at {directory}: there is no such folder; check --workdir')
  found = []
  for kind in KINDS:
    for path in (directory / kind).absolute().glob('*'):
      state, _, step = path.name.rpartition('-')
      if step.isdecimal() and path.is_dir():
        metrics, health = ({}, _STATES.get(state, state)) if state else _examine(path, verify)
        found.append(ListedCheckpoint(kind, int(step), _bytes(path), metrics, health))
  return sorted(found, key=lambda each: (KINDS.index(each.kind), each.step))


def _examine(path: Path, verify: bool) -> tuple[dict, str]:
  metrics = {}
  try:
    record = read_record(path, checksums=verify)
    metrics = record['meta'].get('metrics', {})
    if verify:
      read_leaves(path, record)
    return metrics, 'ok' if verify else 'complete'
  except DamagedError as error:
    return metrics, f'damaged: {error}'


def _bytes(path: Path) -> int:
  size = 0
  for file in path.rglob('*'):
    with contextlib.suppress(OSError):  # a running job may delete it meanwhile
      size += file.stat().st_size if file.is_file() else 0
  return size
