"""TensorFlow Datasets as a source, read without TensorFlow.

Prepared data sets (ArrayRecord files) are read by index through `tfds.data_source`. Only downloading
and preparing one needs TensorFlow: that happens in a child process, which is this module run as
`python -m alexnet_jax.data.tfds_source NAME DIRECTORY`.
"""

import collections
import dataclasses
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from alexnet_jax.data.sources import Example, Source
from alexnet_jax.errors import UserError

# An archive cut short is prepared without complaint; the published counts tell.
EXPECTED_COUNTS = {
  'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
  'cifar10': {'train': 50_000, 'test': 10_000},
}
NAME_FEATURES = ('file_name', 'image/filename', 'id')
INSTALL = "pip install 'alexnet_jax[prepare]'"
WITHOUT = (
  'use --config.data.source=folder --config.data.dir=FOLDER for images of your own, or '
  '--config.data.source=synthetic to try without data'
)


@dataclasses.dataclass(frozen=True)
class TfdsSplit:
  """One split of a prepared data set; images stay encoded."""

  records: Any
  name: str
  name_feature: str | None

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    record = self.records[index]
    name = f'{self.name}[{index}]'
    if self.name_feature:
      text = record[self.name_feature]
      name += f' {text.decode(errors="replace") if isinstance(text, bytes) else text}'
    return Example(record['image'], int(record['label']), name)


def open_tfds(name: str, directory: pathlib.Path, train_split: str, eval_split: str) -> Source:
  """Opens a prepared data set of labelled images.

  Args:
    name: TFDS name, for example `cifar10`, `imagenet2012` or `cats_vs_dogs:4.0.1`.
    directory: TFDS data directory.
    train_split: TFDS split to learn from, for example `train` or `train[:80%]`.
    eval_split: TFDS split held out, for example `validation` or `train[80%:]`.

  Raises:
    UserError: not prepared, not in ArrayRecord format, incomplete, unknown splits, or not labelled
      images.
  """
  builder = _builder(name, directory)
  if not _is_prepared(builder):
    raise UserError(
      f'{_looked_for(builder)}: run python -m alexnet_jax.prepare with this --config, or {WITHOUT}'
    )
  # Unlike the builder of the name, the builder of the folder knows formats it was converted to.
  builder = tfds.builder_from_directory(builder.data_path)
  _check_format(builder)
  _check_counts(builder)
  features = builder.info.features
  if not {'image', 'label'} <= set(features) or not hasattr(features['label'], 'names'):
    raise UserError(
      f'the TFDS data set {name!r} is not one of labelled images (features {", ".join(features)}): '
      'choose one with an image and a class label'
    )
  name_feature = next((feature for feature in NAME_FEATURES if feature in features), None)

  def split(which: str) -> TfdsSplit:
    try:
      records = builder.as_data_source(which, decoders={'image': tfds.decode.SkipDecoding()})
    except ValueError as error:
      raise UserError(
        f'{name} has no split {which!r}: it has {", ".join(builder.info.splits)} '
        f"(parts are written like 'train[:80%]')"
      ) from error
    return TfdsSplit(records, which, name_feature)

  train, held_out = split(train_split), split(eval_split)
  return Source(
    name=name.replace('/', '-').replace(':', '-'),
    classes=tuple(features['label'].names),
    train=train,
    eval=held_out,
    fingerprint=f'{builder.info.full_name}, {train_split} {len(train)}, {eval_split} {len(held_out)}',
  )


def is_prepared(name: str, directory: pathlib.Path) -> bool:
  """Whether the data set can be opened without preparing it."""
  return _is_prepared(_builder(name, directory))


def ensure_prepared(name: str, directory: pathlib.Path, say: Callable[[str], None]) -> None:
  """Downloads and prepares a data set in a child process, unless it is there.

  Args:
    name: TFDS name.
    directory: TFDS data directory.
    say: takes lines for the user.

  Raises:
    UserError: archives to be fetched by hand are missing, no network, TensorFlow absent, or failure.
  """
  builder = _builder(name, directory)
  if _is_prepared(builder):
    return
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    _check_archives(builder, directory)
  if missing := [m for m in ('tensorflow', 'importlib_resources') if not importlib.util.find_spec(m)]:
    raise UserError(
      f'{_looked_for(builder)}; preparing it needs {" and ".join(missing)}: {INSTALL} and rerun '
      f'(training itself does not use TensorFlow), or {WITHOUT}'
    )
  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    _probe(builder)
  for left_over in _left_overs(builder):
    say(f'an interrupted preparation left {left_over}; delete it when no other one is running')
  say(f'preparing the TFDS data set {name} in {directory}')
  command = [sys.executable, '-m', 'alexnet_jax.data.tfds_source', name, str(directory)]
  quiet = {'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''}
  child = subprocess.run(command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=False)
  if child.returncode:
    lines = child.stdout.strip().splitlines() or [f'exit code {child.returncode}']
    raise UserError(f'TFDS could not prepare {name} in {directory}: {lines[-1]}; a rerun starts it again')


def _builder(name: str, directory: pathlib.Path) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder(name, data_dir=str(directory))
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'data.name={name!r} is neither a TFDS data set nor one in {directory}: see '
      f'https://www.tensorflow.org/datasets/catalog, or {WITHOUT}'
    ) from error
  except (AssertionError, ValueError) as error:  # how TFDS refuses a version or a config
    raise UserError(f'data.name={name!r}: {_one_line(error)}') from error


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  return (pathlib.Path(builder.data_path) / 'dataset_info.json').is_file()


def _one_line(error: BaseException) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def _left_overs(builder: tfds.core.DatasetBuilder) -> list[pathlib.Path]:
  return sorted(pathlib.Path(builder.data_path).parent.glob('incomplete.*'))


def _looked_for(builder: tfds.core.DatasetBuilder) -> str:
  text = f'the TFDS data set {builder.info.full_name} is not prepared: looked for {builder.data_path}'
  if left_overs := _left_overs(builder):
    text += f' and found only {left_overs[0].name} of an interrupted preparation (a rerun starts anew)'
  return text


def _check_format(builder: tfds.core.DatasetBuilder) -> None:
  formats = (builder.info.file_format, *builder.info.alternative_file_formats)
  if tfds.core.FileFormat.ARRAY_RECORD not in formats:
    raise UserError(
      f'{builder.data_path} is in {formats[0].value} format, which cannot be read by index: '
      f'{INSTALL} apache-beam mlcroissant, run tfds convert_format '
      f'--dataset_version_dir={builder.data_path} --out_file_format=array_record, and rerun'
    )


def _check_counts(builder: tfds.core.DatasetBuilder) -> None:
  for split, expected in EXPECTED_COUNTS.get(builder.name, {}).items():
    found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    if found != expected:
      raise UserError(
        f'{builder.data_path} has {found:,} {split} examples instead of {expected:,}: an archive was '
        'missing or cut short when it was prepared; check the archive, delete this folder and rerun'
      )


def _check_archives(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> None:
  """Raises UserError unless the archives to be fetched by hand are there, at full size if known."""
  manual = directory / 'downloads' / 'manual'
  expected = {os.path.basename(urllib.parse.urlsplit(url).path): int(info.size)
              for url, info in builder.url_infos.items()}
  missing = [file for file in expected if not (manual / file).is_file()]
  instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
  if missing or not manual.is_dir():
    raise UserError(
      f'{_looked_for(builder)}, and for {", ".join(str(manual / file) for file in missing) or manual} '
      f'to prepare it from. {instructions} Put {" and ".join(missing) or "them"} in {manual}, '
      f'{INSTALL}, and rerun; or {WITHOUT}'
    )
  for file, size in expected.items():
    found = (manual / file).stat().st_size
    if found != size:
      raise UserError(
        f'{manual / file} has {found:,} bytes instead of {size:,}: it was cut short; fetch it again'
      )


def _probe(builder: tfds.core.DatasetBuilder, timeout: float = 3.0) -> None:
  """Raises UserError at once where TFDS would retry for minutes: no way to the download host."""
  proxies = urllib.request.getproxies()
  urls = [urllib.parse.urlsplit(url) for url in builder.url_infos]
  hosts = collections.Counter((url.scheme, url.hostname, url.port) for url in urls if url.hostname)
  for scheme, host, port in hosts:
    reached = urllib.parse.urlsplit(proxies[scheme]) if scheme in proxies else None
    target = (reached.hostname, reached.port or 3128) if reached else (
      host, port or (80 if scheme == 'http' else 443))
    try:
      socket.create_connection(target, timeout=timeout).close()
    except OSError as error:
      raise UserError(
        f'{_looked_for(builder)}, and {host} cannot be reached to download it ({error}): prepare it '
        f'where there is a network and copy it here, or {WITHOUT}'
      ) from error


def _prepare(name: str, directory: str) -> int:
  """What the child process does; its last line on stdout says what went wrong."""
  try:
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.builder(name, data_dir=directory, file_format='array_record').download_and_prepare(
      download_config=config
    )
  except Exception as error:  # any failure of TFDS becomes the one line the parent shows
    print(_one_line(error))
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(_prepare(*sys.argv[1:]))
