"""TensorFlow Datasets as a source, read by index without TensorFlow."""

import dataclasses
import pathlib
import types
from typing import Any

import tensorflow_datasets as tfds

from alexnet_jax.data import imagenet
from alexnet_jax.data.examples import AbsentData, Example, Source
from alexnet_jax.errors import UserError

# Published counts, by name and, if any, variant. TFDS prepares a truncated archive without error,
# which these reveal; and a plan needs them before there are any data.
EXPECTED_COUNTS = {
  'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
  'cifar10': {'train': 50_000, 'test': 10_000},
  'cifar100': {'train': 50_000, 'test': 10_000},
  'mnist': {'train': 60_000, 'test': 10_000},
  'fashion_mnist': {'train': 60_000, 'test': 10_000},
  'cats_vs_dogs': {'train': 23_262},
  'imagenette/full-size-v2': {'train': 9_469, 'validation': 3_925},
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
    name = f'{self.name}[{index}]'
    try:
      record = self.records[index]
    except (OSError, RuntimeError, ValueError) as error:
      raise UserError(
        f'{name} of the TFDS data set cannot be read ({one_line(error)}): is its disk still there?'
        ' run again to go on from here'
      ) from error
    if self.name_feature:
      text = record[self.name_feature]
      name += f' {text.decode(errors="replace") if isinstance(text, bytes) else text}'
    return Example(record['image'], int(record['label']), name)


def open_tfds(name: str, directory: pathlib.Path, train_split: str, eval_split: str) -> Source:
  """Opens a prepared data set of labeled images.

  Args:
    name: TFDS name, for example `cifar10`, `imagenet2012` or `cats_vs_dogs:4.0.1`.
    directory: TFDS data directory.
    train_split: TFDS split to learn from, for example `train` or `train[:80%]`.
    eval_split: TFDS split to validate on, for example `validation` or `train[80%:]`.

  Raises:
    AbsentData: not prepared, or not known to TFDS.
    UserError: not in ArrayRecord format, incomplete, unknown splits, or not labeled images.
  """
  builder = find_builder(name, directory)
  if not is_prepared(builder):
    raise AbsentData(
      f'{looked_for(builder)}: run python -m alexnet_jax.prepare with this --config, or {WITHOUT}'
    )
  _check_prepared(builder)
  features = builder.info.features
  if not {'image', 'label'} <= set(features) or not hasattr(features['label'], 'names'):
    raise UserError(
      f'the TFDS data set {name!r} is not one of labeled images (it has {", ".join(features)}): '
      'choose one with an image and a class label'
    )
  train, validation = _open_split(builder, train_split), _open_split(builder, eval_split)
  classes = tuple(features['label'].names)
  return Source(
    name=name.replace('/', '-').replace(':', '-'),
    classes=classes,
    train=train,
    eval=validation,
    fingerprint=(
      f'{builder.info.full_name}, {train_split} {len(train)}, {eval_split} {len(validation)}'
    ),
    class_names=imagenet.class_names(classes, [directory, directory / 'downloads' / 'manual']),
    found=(
      f'{len(train):,} training and {len(validation):,} validation images of {len(classes):,} '
      f'classes in {builder.data_path}'
    ),
  )


def published_sizes(
  name: str, directory: pathlib.Path, train_split: str, eval_split: str
) -> tuple[int, int, int] | None:
  """Classes, training images and validation images of a data set that may not be there.

  Args: as of `open_tfds`.

  Returns:
    None if they are not known.
  """
  builder = find_builder(name, directory)
  counts = _expected_counts(builder)
  splits = {split: types.SimpleNamespace(num_examples=count) for split, count in counts.items()}

  def size(split: str) -> int:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    ends = [counts[part.splitname] if part.to is None else part.to for part in parts]
    return sum(ends) - sum(part.from_ or 0 for part in parts)

  try:
    train, validation = size(train_split), size(eval_split)
  except (KeyError, ValueError, AssertionError):  # another data set or split, or no such part
    return None
  return builder.info.features['label'].num_classes, train, validation


def _expected_counts(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
  name, _, _ = builder.info.full_name.rpartition('/')  # without the version
  return EXPECTED_COUNTS.get(name, {})


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
    AbsentData: there is no such data set, version or variant.
  """
  try:
    return tfds.builder(name, data_dir=str(directory))
  except tfds.core.DatasetNotFoundError as error:
    raise AbsentData(
      f'data.name={name!r} is neither a TFDS data set nor one in {directory}: see '
      f'https://www.tensorflow.org/datasets/catalog, or {WITHOUT}'
    ) from error
  except (AssertionError, ValueError) as error:  # how TFDS refuses a version or a variant
    raise AbsentData(f'data.name={name!r}: {one_line(error)}') from error


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether a data set can be opened without preparing it."""
  return (pathlib.Path(builder.data_path) / 'dataset_info.json').is_file()


def _check_prepared(builder: tfds.core.DatasetBuilder) -> None:
  """Raises UserError if a data set cannot be read by index, or has other counts than published."""
  data_path = builder.data_path
  formats = [builder.info.file_format, *builder.info.alternative_file_formats]
  if tfds.core.FileFormat.ARRAY_RECORD not in formats:
    raise UserError(
      f'{data_path} is in {formats[0].value} format, which cannot be read by index: {INSTALL} '
      f'apache-beam mlcroissant, run tfds convert_format --dataset_version_dir={data_path} '
      '--out_file_format=array_record, and rerun'
    )
  for split, expected in _expected_counts(builder).items():
    found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    if found != expected:
      raise UserError(
        f'{data_path} has {found:,} {split} examples instead of {expected:,}: an archive was '
        'missing or cut short when it was prepared; check it, delete this folder and rerun'
      )


def looked_for(builder: tfds.core.DatasetBuilder) -> str:
  """The beginning of a message about a data set that is not prepared."""
  return f'the TFDS data set {builder.info.full_name} is not at {builder.data_path}'


def one_line(error: BaseException) -> str:
  """An exception of TFDS, which often has many lines, in one."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
