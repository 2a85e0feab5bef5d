"""Zip archives as `torch.save` and `np.savez` write them: stored, so that nothing can swell."""

import io
import zipfile
from collections.abc import Mapping

from alexnet_jax.weights.other_files import describe_zip

Members = Mapping[str, bytes]


def members(data: bytes) -> Members:
  """Files by their name.

  Raises:
    ValueError: damaged, compressed, or with more in it than the archive has bytes.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
      entries = file.infolist()
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        names = [entry.filename for entry in entries]
        raise ValueError(
          f'it is compressed, which torch.save never does, and {describe_zip(names)}'
        )
      if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError('the archive claims to hold more than it has bytes')
      return {entry.filename: file.read(entry) for entry in entries}
  except ValueError:
    raise
  except Exception as error:  # zipfile fails in many ways on damaged bytes
    raise ValueError(f'its zip archive is damaged ({" ".join(str(error).split())[:80]})') from None
