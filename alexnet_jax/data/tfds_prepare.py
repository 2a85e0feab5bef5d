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

from alexnet_jax.data.tfds_source import (
  INSTALL,
  WITHOUT,
  find_builder,
  is_prepared,
  left_overs,
  looked_for,
  one_line,
)
from alexnet_jax.errors import UserError

NEEDED_MODULES = ('tensorflow', 'importlib_resources')
PROBE_SECONDS = 3.0


def ensure_prepared(name: str, directory: pathlib.Path, say: Callable[[str], None]) -> None:
  """Prepares a data set, unless that has been done.

  Args:
    name: TFDS name.
    directory: TFDS data directory.
    say: takes lines for the user.

  Raises:
    UserError: archives to be fetched by hand are missing or cut short, TensorFlow is absent, there
      is no network, or TFDS failed.
  """
  builder = find_builder(name, directory)
  if is_prepared(builder):
    return
  check_ingredients(builder, directory)
  check_network(builder)
  for folder in left_overs(builder):
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


def check_ingredients(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> None:
  """Raises UserError unless all that preparing needs of this machine is there."""
  check_archives(builder, directory)
  check_modules(builder)


def archives(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> dict[pathlib.Path, int]:
  """Archives that are to be fetched by hand, if any: where they must be, and how many bytes."""
  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return {}
  manual = manual_directory(directory)
  return {
    manual / pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name: int(info.size)
    for url, info in builder.url_infos.items()
  }


def manual_directory(directory: pathlib.Path) -> pathlib.Path:
  """Where TFDS looks for archives that are fetched by hand."""
  return directory / 'downloads' / 'manual'


def check_archives(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> None:
  """Raises UserError unless the archives to be fetched by hand are there in full size."""
  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  manual, expected = manual_directory(directory), archives(builder, directory)
  missing = [file for file in expected if not file.is_file()]
  if missing or not manual.is_dir():
    paths = ', '.join(map(str, missing)) or str(manual)
    names = ' and '.join(file.name for file in missing) or 'them'
    instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    raise UserError(
      f'{looked_for(builder)}, and to prepare it {paths} must be there. {instructions} '
      f'Put {names} in {manual}, {INSTALL}, and rerun; or {WITHOUT}'
    )
  for file, size in expected.items():
    found = file.stat().st_size
    if found != size:
      raise UserError(f'{file} has {found:,} bytes instead of {size:,}: fetch it again, in full')


def check_modules(builder: tfds.core.DatasetBuilder) -> None:
  """Raises UserError unless what the child process imports is installed."""
  missing = [module for module in NEEDED_MODULES if importlib.util.find_spec(module) is None]
  if missing:
    raise UserError(
      f'{looked_for(builder)}; preparing it needs {" and ".join(missing)}, training does not: '
      f'{INSTALL} and rerun, or {WITHOUT}'
    )


def check_network(builder: tfds.core.DatasetBuilder) -> None:
  """Raises UserError at once where TFDS would try for minutes: no way to the download host.

  A data set whose archives are fetched by hand needs no network.
  """
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  proxies = urllib.request.getproxies()
  urls = [urllib.parse.urlsplit(url) for url in builder.url_infos]
  for scheme, host in {(url.scheme, url.netloc) for url in urls}:
    door = urllib.parse.urlsplit(proxies.get(scheme, f'{scheme}://{host}'))
    port = door.port or (443 if door.scheme == 'https' else 80)
    try:
      socket.create_connection((door.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
      raise UserError(
        f'{looked_for(builder)}, and {door.hostname} cannot be reached to download it ({error}): '
        f'prepare it where there is a network and copy it here, or {WITHOUT}'
      ) from error


def _prepare(name: str, directory: str) -> int:
  """What the child does; its last line on standard output says what went wrong."""
  try:
    builder = tfds.builder(name, data_dir=directory, file_format='array_record')
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
  except Exception as error:  # any failure becomes the one line that the parent shows
    print(one_line(error))
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(_prepare(*sys.argv[1:]))
