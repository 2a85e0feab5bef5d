"""What is in one checkpoint: arrays written by orbax, and a record that proves them unchanged.

    state/      the arrays; plain `orbax.checkpoint.StandardCheckpointer().restore` reads them
    meta.json   {"crc32": of the rest, "checkpoint": {"meta": ..., "files": ..., "leaves": ...}}

`leaves` holds shape, dtype and CRC32 of every array, for what comes out must be what went in:
orbax restores a flipped bit without a word. `files` holds size and CRC32 of every file below
`state/`, so that no parser ever sees a damaged one.
"""

import contextlib
import json
import logging
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from alexnet_jax import files

if TYPE_CHECKING:
  import orbax.checkpoint as ocp


class DamagedError(Exception):
  """A checkpoint is not what was written; the message says in a few words what is wrong."""


def write_checkpoint(path: Path, leaves: dict[str, np.ndarray], meta: dict) -> None:
  """Writes a checkpoint so that a power cut after the return does not harm it.

  Args:
    path: folder to make.
    leaves: arrays by names such as 'params/conv1/kernel', of any numeric dtype, not empty.
    meta: what `json` has read or would read back equal.

  Raises:
    OSError: the disk is full, gone, ...
  """
  path.mkdir(exist_ok=True)
  try:
    with _orbax() as orbax, _plain_path(path) as plain:
      orbax.save(plain / 'state', _nested(leaves))
  except Exception as error:  # orbax and tensorstore raise anything
    raise OSError(f'orbax cannot write {path}: {_short(error)}') from error
  listed = {name: [size, _file_crc32(path / name)] for name, size in _file_sizes(path).items()}
  table = {name: _leaf_record(leaf) for name, leaf in leaves.items()}
  record = {'meta': meta, 'files': listed, 'leaves': table}
  (path / 'meta.json').write_bytes(_sealed(json.dumps(record).encode()))
  for name in [*listed, 'meta.json', 'state', '.']:
    files.sync(path / name)


def read_record(path: Path, *, checksums: bool = True) -> dict:
  """Reads meta.json and checks the files against it.

  Args:
    path: folder of the checkpoint.
    checksums: read every byte; otherwise compare sizes only.

  Returns:
    {'meta': dict, 'files': {name: [bytes, crc32]}, 'leaves': {name: [shape, dtype, crc32]}}.

  Raises:
    DamagedError: something is missing or differs.
  """
  try:
    record = _unsealed((path / 'meta.json').read_bytes())
    sizes = _file_sizes(path)
    for name, (size, crc32) in record['files'].items():
      if sizes.get(name) != size:
        raise DamagedError(f'{name} has {sizes.get(name, "no")} bytes instead of {size}')
      if checksums and _file_crc32(path / name) != crc32:
        raise DamagedError(f'the checksum of {name} does not agree')
    return {
      'meta': dict(record['meta']),
      'files': record['files'],
      'leaves': {name: [*leaf] for name, leaf in record['leaves'].items()},
    }
  except OSError as error:
    raise DamagedError(f'{Path(error.filename or path).name}: {error.strerror}') from error
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise DamagedError(f'meta.json is not a record of a checkpoint: {error!r}') from error


def read_leaves(path: Path, record: dict) -> dict[str, np.ndarray]:
  """Reads the arrays by name and checks names, shapes, dtypes and values against the record.

  Raises:
    DamagedError: orbax cannot read them, or they differ.
  """
  try:
    with _orbax() as orbax, _plain_path(path) as plain:
      # Shapes first: a forged one must not make us ask for all the memory there is.
      stored = named_leaves(orbax.metadata(plain / 'state').item_metadata.tree)
      stored = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in stored.items()}
      if stored != {name: leaf[:2] for name, leaf in record['leaves'].items()}:
        raise DamagedError('the arrays in state/ are not those that meta.json lists')
      leaves = named_leaves(orbax.restore(plain / 'state'))
  except DamagedError:
    raise
  except Exception as error:  # orbax and tensorstore raise anything
    raise DamagedError(f'orbax cannot read it: {_short(error)}') from error
  for name, leaf in leaves.items():
    if _leaf_record(leaf) != record['leaves'][name]:
      raise DamagedError(f'the checksum of the array {name} does not agree')
  return leaves


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves by names such as 'params/conv1/kernel', in tree order; empty branches have none."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


@contextlib.contextmanager
def _orbax() -> 'Iterator[ocp.Checkpointer]':
  """Orbax without its barriers, for one process writes and each reads alone.

  Uncompressed: trained weights would shrink by 7 %, and reading take three times as long.
  """
  import orbax.checkpoint as ocp  # a third of what a start would import, and not needed before

  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
  handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
  orbax_log = logging.getLogger('absl')
  orbax_log.addFilter(_is_not_of_orbax)
  try:
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
      yield checkpointer
  finally:
    orbax_log.removeFilter(_is_not_of_orbax)


@contextlib.contextmanager
def _plain_path(path: Path) -> Iterator[Path]:
  """Another path of a folder if its own has what orbax takes for a pattern, or is not UTF-8."""
  try:
    plain = not set('[]*?\\') & set(str(path).encode().decode())
  except UnicodeError:
    plain = False
  if plain:
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    link = Path(folder, 'checkpoint')
    link.symlink_to(path.absolute(), target_is_directory=True)
    yield link


def _short(error: Exception) -> str:
  return ' '.join(str(error).split())[:200]


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs each error with stack traces, once per thread, before it raises it."""
  return 'orbax' not in Path(record.pathname).parts


def _nested(leaves: dict[str, np.ndarray]) -> dict:
  tree: dict = {}
  for name, leaf in leaves.items():
    *branches, last = name.split('/')
    node = tree
    for branch in branches:
      node = node.setdefault(branch, {})
    node[last] = leaf
  return tree


def _leaf_record(leaf: np.ndarray) -> list:
  values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
  return [list(leaf.shape), str(leaf.dtype), zlib.crc32(values)]


def _file_sizes(path: Path) -> dict[str, int]:
  """Bytes of each plain file below state/: a device or a pipe is never read."""
  return {
    str(file.relative_to(path)): file.stat().st_size
    for file in sorted((path / 'state').rglob('*'))
    if file.is_file()
  }


def _file_crc32(path: Path) -> int:
  crc32 = 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 22):
      crc32 = zlib.crc32(block, crc32)
  return crc32


def _sealed(body: bytes) -> bytes:
  """A JSON object that carries the CRC32 of what it holds."""
  return b'{"crc32": "%08x", "checkpoint": %b}' % (zlib.crc32(body), body)


def _unsealed(text: bytes) -> dict:
  body = text[len(_sealed(b'')) - 1 : -1]
  if text != _sealed(body):
    raise DamagedError('the checksum of meta.json does not agree')
  return json.loads(body)
