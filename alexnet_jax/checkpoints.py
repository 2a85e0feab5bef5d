"""Lists the checkpoints of a run.

  python -m alexnet_jax.checkpoints --workdir=runs/digits [--verify]

Exit codes: 0 all are well, 2 one is not or there is none.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.run.checkpoint import KINDS
from alexnet_jax.run.checkpoint_files import DamagedError, read_leaves, read_record
from alexnet_jax.run.folder import RunFolder
from alexnet_jax.terminal import aligned, si

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Read all and check every checksum.')


class Row(NamedTuple):
  """One checkpoint: `health` is 'ok' (all verified), 'complete' (sizes agree) or what is wrong."""

  kind: str
  step: int
  bytes: int
  metrics: dict[str, float]
  health: str


def describe(directory: str | os.PathLike, *, verify: bool = False) -> list[Row]:
  """Lists all that is in a directory of `Checkpoints`, also while a job is writing there.

  Args:
    directory: what `Checkpoints` was given.
    verify: check every checksum instead of only the sizes.

  Raises:
    UserError: there is no such directory.
  """
  if not Path(directory).is_dir():
    raise UserError(f'no checkpoints at {directory}: there is no such folder; check --workdir')
  rows = []
  for kind in KINDS:
    for path in (Path(directory) / kind).absolute().glob('*'):
      state, _, step = path.name.rpartition('-')
      if step.isdecimal() and path.is_dir():
        metrics, health = _examine(path, verify) if not state else ({}, _NAMES.get(state, state))
        rows.append(Row(kind, int(step), _bytes(path), metrics, health))
  return sorted(rows, key=lambda row: (KINDS.index(row.kind), row.step))


_NAMES = {
  'damaged': 'damaged, set aside',
  '.saving': 'unfinished',
  '.deleting': 'being deleted',
  '.replaced': 'being replaced',
}


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
  for folder, _, files in os.walk(path):
    for file in files:
      with contextlib.suppress(OSError):  # a running job may delete it meanwhile
        size += os.path.getsize(os.path.join(folder, file))
  return size


def table(rows: list[Row]) -> list[str]:
  """The rows for people."""
  cells = [('kind', 'step', 'size', 'metrics', 'health')]
  for row in rows:
    metrics = ', '.join(
      f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
      for name, value in row.metrics.items()
    )
    cells.append((row.kind, f'{row.step:,}', si(row.bytes, 'B'), metrics, row.health))
  return aligned(cells, left=(0, 3, 4))


def main() -> None:
  if not _WORKDIR.value:
    raise UserError('--workdir is missing: give the folder of a run')
  # A job may be training on the accelerator; reading does not need one.
  jax.config.update('jax_platforms', 'cpu')
  folder = RunFolder(_WORKDIR.value).checkpoints
  rows = describe(folder, verify=_VERIFY.value)
  if not rows:
    raise UserError(f'no checkpoints in {folder}: the run has not saved yet')
  print('\n'.join([str(folder), *table(rows)]))
  damaged = sum(row.health.startswith('damaged:') for row in rows)
  if damaged:
    raise UserError(
      f'{damaged} of {len(rows)} checkpoints in {folder} are damaged; a restart passes over them'
    )


if __name__ == '__main__':
  sys.exit(cli.run(main, configured=False))
