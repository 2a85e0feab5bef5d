"""Files that are whole or not there: write beside the target, flush to disk, rename.

A reader, or a run killed in the middle of a write, sees the old content or the new, never a part.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Replaces the content of `path` at once; makes its folder if need be.

  Raises:
    OSError: the disk is full, the folder is read-only, ...; `path` then holds what it held before.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not `tempfile`: its files are private to the user (0600), and a renamed one would stay so.
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  _sync_directory(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Like `write_bytes`, of UTF-8 text."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Like `write_bytes`, of `value` as indented JSON; see `to_json`."""
  write_text(path, to_json(value, indent=2) + '\n')


def to_json(value: Any, indent: int | None = None) -> str:
  """Strict JSON text: numbers that are not finite become null, arrays lists, paths strings."""
  return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
  """The same value made of dict, list, str, int, float, bool and None only."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, float):
    # `float()` because np.float64 is a float, whose repr is not a number.
    return float(value) if math.isfinite(value) else None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, 'tolist'):  # NumPy and JAX arrays and scalars
    return _plain(value.tolist())
  return value


def _sync_directory(directory: Path) -> None:
  """Makes a rename inside `directory` survive a power cut, where the system can do that."""
  if os.name != 'posix':
    return
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    pass  # Some network file systems refuse to sync a directory; the rename itself has happened.
  finally:
    os.close(descriptor)
