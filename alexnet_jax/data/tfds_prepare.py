"""Downloads and prepares a TensorFlow Datasets data set in a child process.

Only this needs TensorFlow, and only in the child, which is this module run as
`python -m alexnet_jax.data.tfds_prepare NAME DIRECTORY`.
"""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable

import tensorflow_datasets as tfds

from alexnet_jax.data import tfds_source
from alexnet_jax.data.tfds_source import INSTALL, WITHOUT, looked_for
from alexnet_jax.errors import UserError

NEEDED_MODULES = ('tensorflow', 'importlib_resources')
PROBE_SECONDS = 3.0


def ensure_prepared(name: str, directory: pathlib.Path, say: Callable[[str], None]) -> None:
  """Prepares the data set `name` in a TFDS data directory, unless that has been done.

  Args:
    name: of the data set, such as 'cifar10'.
    directory: the TFDS data directory.
    say: takes lines for the user.

  Raises:
    UserError: archives to be fetched by hand are missing or cut short, TensorFlow is absent, there
      is no network, or TFDS failed.
  """
  builder = check_ingredients(name, directory)
  if tfds_source.is_prepared(builder):
    return
  check_network(builder)
  for folder in sorted(pathlib.Path(builder.data_path).parent.glob('incomplete.*')):
    say(f'an interrupted preparation left {folder}: delete it when no other one is running')
  say(f'preparing the TFDS data set {name} in {directory}')
  child = subprocess.run(
    [sys.executable, '-m', 'alexnet_jax.data.tfds_prepare', name, str(directory)],
    env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  if child.returncode:
    lines = child.stdout.strip().splitlines() or [f'exit code {child.returncode}']
    raise UserError(
      f'TFDS could not prepare {name} in {directory}: {lines[-1]}; a rerun starts it again'
    )


def check_ingredients(name: str, directory: pathlib.Path) -> tfds.core.DatasetBuilder:
  """The builder of a data set that is prepared, or can be.

  Raises:
    UserError: TensorFlow, or an archive that TFDS cannot download, is not here.
  """
  builder = tfds_source.find_builder(name, directory)
  if tfds_source.is_prepared(builder):
    return builder
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    manual = directory / 'downloads' / 'manual'
    expected = {
      manual / pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name: int(info.size)
      for url, info in builder.url_infos.items()
    }
    missing = [file for file in expected if not file.is_file()]
    if missing or not manual.is_dir():
      paths = ', '.join(map(str, missing)) or str(manual)
      instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
      raise UserError(
        f'{looked_for(builder)}, and to prepare it {paths} must be there. {instructions} '
        f'Put it there, {INSTALL}, and rerun; or {WITHOUT}'
      )
    for file, size in expected.items():
      found = file.stat().st_size
      if found != size:
        raise UserError(f'{file} has {found:,} bytes instead of {size:,}: fetch it again, in full')
  absent = [module for module in NEEDED_MODULES if importlib.util.find_spec(module) is None]
  if absent:
    raise UserError(
      f'{looked_for(builder)}; preparing it needs {" and ".join(absent)}, training does not: '
      f'{INSTALL} and rerun, or {WITHOUT}'
    )
  return builder


def check_network(builder: tfds.core.DatasetBuilder) -> None:
  """Raises UserError at once if the download host, which TFDS would try for minutes, is away."""
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  proxies = urllib.request.getproxies()
  urls = [urllib.parse.urlsplit(url) for url in builder.url_infos]
  for scheme, netloc in {(url.scheme, url.netloc) for url in urls}:
    host = urllib.parse.urlsplit(proxies.get(scheme, f'{scheme}://{netloc}'))
    port = host.port or (443 if host.scheme == 'https' else 80)
    try:
      socket.create_connection((host.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
      raise UserError(
        f'{looked_for(builder)}, and {host.hostname} cannot be reached to download it ({error}): '
        f'prepare it where there is a network and copy it here, or {WITHOUT}'
      ) from error


def _prepare(name: str, directory: str) -> int:
  """The child process; its last line on standard output says what went wrong."""
  try:
    builder = tfds.builder(name, data_dir=directory, file_format='array_record')
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
  except Exception as error:  # any failure becomes the one line that the parent shows
    print(tfds_source.one_line(error))
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(_prepare(*sys.argv[1:]))
