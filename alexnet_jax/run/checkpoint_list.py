"""A table of the checkpoints of a run, with unfinished and damaged ones."""

import contextlib
from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.run.checkpoint import KINDS
from alexnet_jax.run.checkpoint_files import DamagedError, read_checkpoint, read_record
from alexnet_jax.terminal import aligned, si

_STATES = {
  'damaged': 'damaged, set aside',
  '.saving': 'unfinished',
  '.deleting': 'being deleted',
  '.replaced': 'being replaced',
}


def print_checkpoints(directory: Path, verify: bool) -> None:
  """Prints kind, step, size, metrics and health of each; a job may be writing there.

  With `verify` every checksum is checked ('ok') instead of only the sizes ('complete').

  Raises:
    UserError: there are none, or one is damaged.
  """
  found = [
    (place, int(path.name.rpartition('-')[2]), path)
    for place, kind in enumerate(KINDS)
    for path in (directory / kind).absolute().glob('*')
    if path.is_dir() and path.name.rpartition('-')[2].isdecimal()
  ]
  if not found:
    raise UserError(f'no checkpoints in {directory}: the run has not saved yet; or check --workdir')
  rows = [('kind', 'step', 'size', 'metrics', 'health')]
  for place, step, path in sorted(found):
    metrics, health = _examine(path, verify)
    rows.append((KINDS[place], f'{step:,}', si(_bytes(path), 'B'), metrics, health))
  print('\n'.join([str(directory), *aligned(rows, left=(0, 3, 4))]))
  if damaged := sum(health.startswith('damaged:') for *_, health in rows):
    raise UserError(
      f'{damaged} of {len(found)} checkpoints in {directory} are damaged; a resumed run skips them'
    )


def _examine(path: Path, verify: bool) -> tuple[str, str]:
  """Metrics and health of a checkpoint."""
  metrics = ''
  if state := path.name.rpartition('-')[0]:
    return metrics, _STATES.get(state, state)
  try:
    recorded = read_record(path)['meta'].get('metrics', {})
    metrics = ', '.join(f'{name} {value:.4g}' for name, value in recorded.items())
    if verify:
      read_checkpoint(path)
    return metrics, 'ok' if verify else 'complete'
  except DamagedError as error:
    return metrics, f'damaged: {error}'


def _bytes(path: Path) -> int:
  size = 0
  for file in path.rglob('*'):
    with contextlib.suppress(OSError):  # a running job may delete it meanwhile
      size += file.stat().st_size if file.is_file() else 0
  return size
