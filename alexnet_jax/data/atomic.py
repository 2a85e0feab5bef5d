"""Small files that appear under their name complete, or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file to write, renamed to `path` when it is complete and on disk."""
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'wb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  with replacing(path) as file:
    file.write((json.dumps(value, indent=1) + '\n').encode())


def write_npy(path: pathlib.Path, value: np.ndarray) -> None:
  with replacing(path) as file:
    np.save(file, value, allow_pickle=False)


def write_npz(path: pathlib.Path, **values: Any) -> None:
  with replacing(path) as file:
    np.savez(file, **values)
