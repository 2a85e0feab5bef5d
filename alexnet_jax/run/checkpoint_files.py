"""The files of one checkpoint: arrays written by orbax, and a record of their checksums.

    state/      the arrays; plain `orbax.checkpoint.StandardCheckpointer().restore` reads them
    meta.json   {"crc32": of the rest, "checkpoint": {"meta": ..., "files": ..., "leaves": ...}}

`leaves` holds shape, dtype and CRC32 of every array, since orbax does not notice a flipped bit.
`files` holds size and CRC32 of every file below `state/`, so that no parser reads a damaged one.
"""

import contextlib
import json
import logging
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np

from alexnet_jax import files

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_MISREAD = re.compile(r'[\[\]*?\\\udc80-\udcff]')  # patterns to orbax; bytes that are not UTF-8


class DamagedError(Exception):
  """A checkpoint is not what was written."""


def write_checkpoint(path: Path, leaves: dict[str, np.ndarray], meta: dict) -> None:
  """Writes a checkpoint, and waits until it is on disk.

  Args:
    path: folder to make.
    leaves: arrays by names such as 'params/conv1/kernel', of any numeric dtype, not empty.
    meta: what `json` has read or would read back equal.

  Raises:
    OSError: the disk is full, gone, ...
  """
  path.mkdir(exist_ok=True)
  try:
    with _orbax(path) as (orbax, state):
      orbax.save(state, flax.traverse_util.unflatten_dict(leaves, sep='/'))
  except Exception as error:  # orbax and tensorstore raise anything
    raise OSError(f'orbax cannot write {path}: {_short(error)}') from error
  listed = {name: [size, _file_crc32(path / name)] for name, size in _file_sizes(path).items()}
  table = {name: _leaf_record(leaf) for name, leaf in leaves.items()}
  record = {'meta': meta, 'files': listed, 'leaves': table}
  (path / 'meta.json').write_bytes(_sealed(json.dumps(record).encode()))
  for name in [*listed, 'meta.json', 'state', '.']:
    files.sync(path / name)


def read_record(path: Path) -> dict:
  """Reads meta.json and compares the sizes of the files with it.

  Returns:
    {'meta': dict, 'files': {name: [bytes, crc32]}, 'leaves': {name: [shape, dtype, crc32]}}.

  Raises:
    DamagedError: something is missing or differs.
  """
  try:
    text = (path / 'meta.json').read_bytes()
    sizes = _file_sizes(path)
  except OSError as error:
    raise DamagedError(f'{Path(error.filename or path).name}: {error.strerror}') from error
  body = text[len(_sealed(b'')) - 1 : -1]
  if text != _sealed(body):
    raise DamagedError('the checksum of meta.json does not agree')
  record = json.loads(body)
  for name, (size, _) in record['files'].items():
    if sizes.get(name) != size:
      raise DamagedError(f'{name} has {sizes.get(name, "no")} bytes instead of {size}')
  return record


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
  """Reads the arrays by name, and the meta; checks every file and every array.

  Raises:
    DamagedError: something is missing or differs, or orbax cannot read it.
  """
  record = read_record(path)
  try:
    for name, (_, crc32) in record['files'].items():
      if _file_crc32(path / name) != crc32:
        raise DamagedError(f'the checksum of {name} does not agree')
    with _orbax(path) as (orbax, state):
      leaves = named_leaves(orbax.restore(state))
  except DamagedError:
    raise
  except Exception as error:  # orbax and tensorstore raise anything
    raise DamagedError(f'orbax cannot read it: {_short(error)}') from error
  for name in sorted(leaves.keys() | record['leaves'].keys()):
    if name not in leaves or _leaf_record(leaves[name]) != record['leaves'].get(name):
      raise DamagedError(f'the checksum of the array {name} does not agree')
  return leaves, record['meta']


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves by names such as 'params/conv1/kernel', in tree order; empty branches have none."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


@contextlib.contextmanager
def _orbax(path: Path) -> Iterator[tuple['ocp.Checkpointer', Path]]:
  """An orbax checkpointer without barriers between processes, and the path for it.

  Uncompressed: trained weights would shrink by 7 %, and reading take three times as long.
  """
  import orbax.checkpoint as ocp  # a third of what a start would import, and not needed before

  logging.getLogger('absl').addFilter(_is_not_of_orbax)
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
  handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
  with contextlib.ExitStack() as stack:
    if _MISREAD.search(str(path)):
      link = Path(stack.enter_context(tempfile.TemporaryDirectory()), 'checkpoint')
      link.symlink_to(path.absolute(), target_is_directory=True)
      path = link
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    yield stack.enter_context(checkpointer), path / 'state'


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """Drops what orbax logs: each error with stack traces, once per thread, before it raises it."""
  return 'orbax' not in Path(record.pathname).parts


def _short(error: Exception) -> str:
  return ' '.join(str(error).split())[:200]


def _leaf_record(leaf: np.ndarray) -> list:
  values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
  return [list(leaf.shape), str(leaf.dtype), zlib.crc32(values)]


def _file_sizes(path: Path) -> dict[str, int]:
  """Bytes of each file below state/."""
  found = sorted((path / 'state').rglob('*'))
  return {str(file.relative_to(path)): file.stat().st_size for file in found if file.is_file()}


def _file_crc32(path: Path) -> int:
  crc32 = 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 22):
      crc32 = zlib.crc32(block, crc32)
  return crc32


def _sealed(body: bytes) -> bytes:
  """A JSON object with another one and its CRC32."""
  return b'{"crc32": "%08x", "checkpoint": %b}' % (zlib.crc32(body), body)
