"""Paths that users give, atomic writes, and JSON.

Files are written beside the target, flushed to disk and renamed: a reader sees the old content or
the new, never a part, even if the writer is killed.
"""

import contextlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from alexnet_jax.errors import UserError


def expand(path: str | os.PathLike, what: str) -> Path:
  """The path that a user gave in the flag, field or variable `what`, `~` expanded.

  Raises:
    UserError: a URL such as gs://bucket, of which `Path` would make a folder; an unknown home.
  """
  text = os.fspath(path)
  if re.match('[A-Za-z][A-Za-z0-9+.-]*://', text):
    raise UserError(
      f'{what}={text}: not a folder or file of this machine; files are renamed and mapped into'
      ' memory, which object stores cannot do: use a disk, and copy before or afterwards'
    )
  try:
    return Path(text).expanduser()
  except RuntimeError as error:
    raise UserError(f'{what}={text}: there is no such home folder: give the whole path') from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file that becomes `path` when it is complete and on disk; makes its folder.

  Raises:
    OSError: the disk is full, the folder is read-only, ...; `path` is then as before.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not `tempfile`: its files are private to the user (0600), and a renamed one would stay so.
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  with contextlib.suppress(OSError):  # some network file systems refuse; the rename has happened
    sync(path.parent)


@contextlib.contextmanager
def one_line_error(what: str) -> Iterator[None]:
  """Turns an OSError into a UserError that `what`, such as '--json=a.json', cannot be written."""
  try:
    yield
  except OSError as error:
    raise UserError(f'{what} cannot be written: {error.strerror}; give another path') from None


def write(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes bytes, or text as UTF-8, atomically; see `replacing`."""
  with replacing(path) as file:
    file.write(content.encode('utf-8') if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a value as indented JSON, atomically; see `json_text`."""
  write(path, json_text(value, indent=2) + '\n')


def write_npz(path: str | os.PathLike, **arrays: Any) -> None:
  """Writes a NumPy archive of arrays by name, atomically."""
  import numpy as np  # help and typos do not need it

  with replacing(path) as file:
    np.savez(file, **arrays)


def read_npz(path: Path, names: Iterable[str], advice: str) -> dict[str, Any]:
  """Reads the arrays of these names.

  Raises:
    UserError: the file is damaged; the message ends with `advice`.
  """
  import numpy as np

  try:
    # From memory, since np.load leaves a damaged file open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
      return {name: saved[name] for name in names}
  except Exception as error:  # NumPy's readers raise nearly anything on damaged bytes
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(f'{path} is damaged ({reason}): {advice}') from None


def read_json(path: Path) -> dict[str, Any]:
  """Reads a file that holds a JSON object.

  Raises:
    UserError: it holds something else.
  """
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(value, dict):
      raise ValueError('not an object')
    return value
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path} is damaged ({error}): restore it from a copy, or move the folder away to start again'
    ) from None


def json_text(value: Any, indent: int | None = None) -> str:
  """Strict JSON: numbers that are not finite become null, arrays lists, paths strings.

  Bytes of file names that are not UTF-8 become JSON escapes, which readers turn back.
  """
  text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
  return text.encode('utf-8', 'backslashreplace').decode()


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


def sync(path: Path) -> None:
  """Makes a file, or the names in a folder, survive a power cut."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
