"""Checkpoints that survive kill -9, full disks and flipped bits.

A checkpoint is a folder, `<directory>/last/1200/` or `<directory>/best/800/`. It is written under
a hidden name and appears by one rename; it is deleted by one rename to a hidden name first. So
what is listed is complete, and what a kill leaves behind is hidden, and removed at the next start.

Orbax writes the arrays, but not through its `CheckpointManager`: that one lists checkpoints whose
deletion was cut short, never falls back to an older one, silently skips `save(step <= latest)`,
and after a full disk loses the next save as well.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.run import checkpoint_files
from alexnet_jax.run.checkpoint_files import DamagedError
from alexnet_jax.terminal import si

KINDS = ('last', 'best')
_log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run: the newest few in `last/`, the best one in `best/`.

  Attributes:
    primary: whether this process writes: only process 0 of the job that trains.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2, primary: bool = True):
    """Opens the directory; the primary process makes it and removes what a kill left unfinished.

    Args:
      directory: a local or network folder.
      keep: how many of the newest checkpoints stay in `last/`; `best/` keeps one.
      primary: whether this process writes.
    """
    self._directory = Path(directory).absolute()
    self._keep = {'last': keep, 'best': 1}
    self.primary = primary
    self._thread = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    self._pending: Future | None = None
    self._read_back = False  # whether this process has read a checkpoint that it wrote
    for folder in [self._directory / kind for kind in KINDS if primary]:
      folder.mkdir(parents=True, exist_ok=True)
      _clean(folder)

  def save(self, step: int, state: Any, meta: dict, *, kind: str = 'last') -> None:
    """Writes a checkpoint in the background; the state may be donated or changed at once.

    Waits for the save before and raises what it raised. A full disk does not raise: it is logged,
    and older checkpoints stay. A checkpoint of the same step is replaced, those of later steps are
    removed: the run has gone back to before them. The first save of the process is read back, so
    that a disk which cannot be read from shows now, not on the day the checkpoint is needed.

    Args:
      step: how many updates the state has seen.
      state: pytree of arrays, not empty ones. Of a replicated device array the caller only waits
        until a copy on the device is ordered; a NumPy array is copied on the host.
      meta: config, metrics under 'metrics', ...: what `json` can write, NaN included.
      kind: 'last' or 'best'.
    """
    if not self.primary:
      return
    self.wait()
    meta = json.loads(json.dumps(meta))  # a copy, and an error here instead of in the thread
    leaves = {
      name: _snapshot(name, leaf) for name, leaf in checkpoint_files.named_leaves(state).items()
    }
    self._pending = self._thread.submit(self._write, kind, step, leaves, meta)

  def restore(self, target: Any) -> tuple[int, Any, dict] | None:
    """Reads the newest good checkpoint of `last/` into a pytree; see `newest`.

    Args:
      target: pytree of arrays or ShapeDtypeStructs that the checkpoint has to fit.

    Returns:
      (step, state, meta), the state a pytree like `target` of NumPy arrays; None if there are
      no checkpoints.

    Raises:
      UserError: all checkpoints are damaged, or a good one does not fit `target`.
    """
    found = self.newest()
    if found is None:
      return None
    step, leaves, meta = found
    _require_fit(leaves, target, self._directory / 'last' / str(step))
    ordered = [leaves[name] for name in checkpoint_files.named_leaves(target)]
    return step, jax.tree.unflatten(jax.tree.structure(target), ordered), meta

  def newest(self, kind: str = 'last') -> tuple[int, dict[str, np.ndarray], dict] | None:
    """Reads the newest checkpoint whose checksums agree.

    Damaged ones are logged and passed over; once a good one is found, the primary process moves
    them to `damaged-<step>`.

    Returns:
      (step, {name: array} with names such as 'params/conv1/kernel', meta); None if there are no
      checkpoints.

    Raises:
      UserError: all checkpoints are damaged.
    """
    self.wait()
    damaged: dict[int, DamagedError] = {}
    # Listed again after each failure: a running job may delete what a reader is reading.
    while steps := [step for step in self.steps(kind) if step not in damaged]:
      step, path = steps[-1], self._directory / kind / str(steps[-1])
      try:
        leaves, meta = checkpoint_files.read_checkpoint(path)
      except DamagedError as error:
        _log.warning(f'checkpoint {path} is damaged ({error}); trying the one before')
        damaged[step] = error
        continue
      for other in damaged if self.primary else ():
        _set_aside(self._directory / kind / str(other))
      return step, leaves, meta
    if damaged:
      reasons = '; '.join(f'{step}: {error}' for step, error in damaged.items())
      raise UserError(
        f'every checkpoint in {self._directory / kind} is damaged ({reasons}): '
        'put back a copy, or remove the folder to start from the beginning'
      )
    return None

  def steps(self, kind: str = 'last') -> list[int]:
    """The steps of finished checkpoints, oldest first."""
    names = [path.name for path in (self._directory / kind).glob('*')]
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

  def wait(self) -> None:
    """Waits for the save in progress and raises what it raised."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def close(self) -> None:
    """Waits for the save in progress, which is lost otherwise, and ends the thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()

  def _write(self, kind: str, step: int, leaves: dict[str, Any], meta: dict) -> None:
    """The part of `save` that runs in the thread."""
    folder = self._directory / kind
    size = sum(leaf.nbytes for leaf in leaves.values())
    try:
      _clean(folder)
      if shutil.disk_usage(folder).free < size:  # before the disk is full for everybody
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      saving = folder / f'.saving-{step}'
      checkpoint_files.write_checkpoint(saving, jax.device_get(leaves), meta)
      if not self._read_back:
        try:
          checkpoint_files.read_checkpoint(saving)
        except DamagedError as error:
          raise UserError(
            f'the first checkpoint, just written to {folder}, cannot be read back ({error}): check'
            ' that disk, or choose another --workdir'
          ) from error
        self._read_back = True
      _publish(folder, step)
      self._remove_old(kind, step)
    except Exception as error:
      _clean(folder)
      if not _is_disk_full(error):
        raise
      free = shutil.disk_usage(folder).free
      _log.error(
        f'checkpoint {folder}/{step} is not saved: the disk or quota is full ({si(size, "B")}'
        f' needed, {si(free, "B")} free on the disk); older ones are intact, training goes on, the'
        ' next save tries again'
      )

  def _remove_old(self, kind: str, step: int) -> None:
    """Removes all checkpoints but the newest ones up to the step just saved."""
    folder, steps = self._directory / kind, self.steps(kind)
    if later := [old for old in steps if old > step]:
      _log.warning(f'removing checkpoints {later} in {folder}: later than step {step} just saved')
    for old in later + [old for old in steps if old <= step][: -self._keep[kind]]:
      (folder / str(old)).rename(folder / f'.deleting-{old}')
    _clean(folder)


def _publish(folder: Path, step: int) -> None:
  """Gives a finished checkpoint its name, in place of one that has it already."""
  if (folder / str(step)).exists():
    (folder / str(step)).rename(folder / f'.replaced-{step}')
  (folder / f'.saving-{step}').rename(folder / str(step))
  files.sync(folder)


def _clean(folder: Path) -> None:
  """Removes unfinished and half-deleted checkpoints; undoes a replacement that was cut short."""
  for path in folder.glob('.*-*'):
    state, _, step = path.name[1:].partition('-')
    if state == 'replaced' and not (folder / step).exists():
      path.rename(folder / step)
    elif state in ('saving', 'replaced', 'deleting'):
      if state == 'saving':
        _log.warning(f'removing the unfinished checkpoint {path}')
      shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
  aside = path.with_name(f'damaged-{path.name}')
  shutil.rmtree(aside, ignore_errors=True)
  with contextlib.suppress(FileNotFoundError):
    path.rename(aside)
    _log.warning(f'moved the damaged checkpoint to {aside}, which may be deleted')


def _snapshot(name: str, leaf: Any) -> Any:
  """A copy that neither donation nor assignment can reach; does not wait for the device."""
  if not isinstance(leaf, jax.Array):
    return np.array(leaf)
  if not leaf.is_fully_replicated:
    raise ValueError(f'{name} is not replicated: {leaf.sharding}')
  local = leaf.addressable_data(0)  # one process alone may compute on its own devices only
  return jax.device_put(local, local.sharding, may_alias=False)


def _require_fit(leaves: dict[str, np.ndarray], target: Any, path: Path) -> None:
  """Raises UserError naming the first array whose shape or dtype is not that in `target`."""
  wanted = checkpoint_files.named_leaves(target)
  for name in sorted(wanted.keys() | leaves.keys()):
    saved, here = (_shape(tree[name]) if name in tree else 'missing' for tree in (leaves, wanted))
    if saved != here:
      raise UserError(
        f'checkpoint {path} does not fit: {name} is {saved} in it and {here} in this run; use the'
        ' configuration it was saved with, or another --workdir'
      )


def _shape(leaf: Any) -> str:
  leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'


def _is_disk_full(error: BaseException | None) -> bool:
  """Whether a full disk or quota is behind an error; tensorstore says so only in words."""
  while error is not None:
    for code in (errno.ENOSPC, errno.EDQUOT):
      if getattr(error, 'errno', None) == code or os.strerror(code) in str(error):
        return True
    error = error.__cause__ or error.__context__
  return False
