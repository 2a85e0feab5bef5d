"""Recognizes files that hold no weights, for errors that say what they are and what to do."""

import re
from collections.abc import Iterable

_DOWNLOAD = 'download the file itself'
_UNPACK = 'unpack it and give the file of weights in it'
_BEGINNINGS = (
  (rb'version https://git-lfs', f'a Git LFS pointer: run "git lfs pull", or {_DOWNLOAD}'),
  (rb'(?i)\s*<(!doctype html|html|head)', f'an HTML page, as of a log-in or error: {_DOWNLOAD}'),
  # gzip, bzip2, xz, Zstandard, 7z, rar, tar
  (
    rb'\x1f\x8b|BZh\d|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|(?s:.{257}ustar)',
    f'a compressed file or an archive: {_UNPACK}',
  ),
  (rb'\x89HDF\r\n\x1a\n', 'HDF5, as of Keras, which is not read'),
  (rb'MATLAB 5', 'a MATLAB file, as of MatConvNet, which is not read'),
  (rb'\x08\x01', 'a SavedModel of TensorFlow, which is not read'),
)


def describe_file(data: bytes) -> str | None:
  """What a file is, by its first bytes, and what to do; None if that is not known."""
  if not data:
    return 'empty: download or save it again'
  for beginning, what in _BEGINNINGS:
    if re.match(beginning, data):
      return what
  if re.fullmatch(rb'[\s -~]+', data[:200]):
    return f'a text that begins with {data[:40].decode().splitlines()[0]!r}'
  return None


def describe_zip(names: Iterable[str]) -> str:
  """The same of a zip archive of these files, if neither torch.save nor np.savez wrote it."""
  return f'a zip archive of {", ".join(sorted(names)[:3]) or "nothing":.80}: {_UNPACK}'
