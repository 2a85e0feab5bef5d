"""TensorFlow Datasets as a source, read without TensorFlow.

Prepared data sets (ArrayRecord files) are read by index through `tfds.data_source`, which needs no
TensorFlow; `tfds_prepare` makes them.
"""

import dataclasses
import pathlib
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
  builder = find_builder(name, directory)
  if not is_prepared(builder):
    raise UserError(
      f'{looked_for(builder)}: run python -m alexnet_jax.prepare with this --config, or {WITHOUT}'
    )
  # Unlike the builder of the name, the builder of the folder knows formats it was converted to.
  builder = tfds.builder_from_directory(builder.data_path)
  _check_format(builder)
  _check_counts(builder)
  features = builder.info.features
  if not {'image', 'label'} <= set(features) or not hasattr(features['label'], 'names'):
    raise UserError(
      f'the TFDS data set {name!r} is not one of labelled images (it has {", ".join(features)}): '
      'choose one with an image and a class label'
    )
  train, held_out = _open_split(builder, train_split), _open_split(builder, eval_split)
  return Source(
    name=name.replace('/', '-').replace(':', '-'),
    classes=tuple(features['label'].names),
    train=train,
    eval=held_out,
    fingerprint=(
      f'{builder.info.full_name}, {train_split} {len(train)}, {eval_split} {len(held_out)}'
    ),
  )


def _open_split(builder: tfds.core.DatasetBuilder, split: str) -> TfdsSplit:
  try:
    records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  except ValueError as error:
    raise UserError(
      f'{builder.info.full_name} has no split {split!r}: it has {", ".join(builder.info.splits)} '
      "(parts are written like 'train[:80%]')"
    ) from error
  name_feature = next((name for name in NAME_FEATURES if name in builder.info.features), None)
  return TfdsSplit(records, split, name_feature)


def find_builder(name: str, directory: pathlib.Path) -> tfds.core.DatasetBuilder:
  """The builder of a TFDS name.

  Raises:
    UserError: there is no such data set, version or variant.
  """
  try:
    return tfds.builder(name, data_dir=str(directory))
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'data.name={name!r} is neither a TFDS data set nor one in {directory}: see '
      f'https://www.tensorflow.org/datasets/catalog, or {WITHOUT}'
    ) from error
  except (AssertionError, ValueError) as error:  # how TFDS refuses a version or a variant
    raise UserError(f'data.name={name!r}: {one_line(error)}') from error


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether a data set can be opened without preparing it."""
  return (pathlib.Path(builder.data_path) / 'dataset_info.json').is_file()


def looked_for(builder: tfds.core.DatasetBuilder) -> str:
  """The beginning of a message about a data set that is not prepared."""
  text = f'the TFDS data set {builder.info.full_name} is not at {builder.data_path}'
  if left := left_overs(builder):
    text += f' (only {left[0].name} of an interrupted preparation; a rerun starts anew)'
  return text


def left_overs(builder: tfds.core.DatasetBuilder) -> list[pathlib.Path]:
  """Folders that interrupted preparations left behind."""
  return sorted(pathlib.Path(builder.data_path).parent.glob('incomplete.*'))


def one_line(error: BaseException) -> str:
  """An exception of TFDS, which often has many lines, in one."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


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
        f'{builder.data_path} has {found:,} {split} examples instead of {expected:,}: an archive '
        'was missing or cut short when it was prepared; check it, delete this folder and rerun'
      )
