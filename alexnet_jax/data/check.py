"""Looks at what preparing a configuration's data would find, and changes nothing."""

import dataclasses
import os
import pathlib
import shlex
import shutil
from collections.abc import Callable
from typing import Any

from alexnet_jax.data import (
  imagenet,
  preparation,
  sources,
  store,
  tfds_prepare,
  tfds_source,
  writer,
)
from alexnet_jax.data.job import Job
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

Need = tuple[str, pathlib.Path, int]  # for what, where, how many bytes


@dataclasses.dataclass
class Report:
  """What was found.

  Attributes:
    lines: (what was looked at, what was found).
    problem: why preparation could not run now, in one line; '' if it could.
    remedy: the command that takes the problem away; '' if no single command does.
    complete: whether training could start as it is.
  """

  lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  problem: str = ''
  remedy: str = ''
  complete: bool = False

  def add(self, what: str, found: str) -> None:
    self.lines.append((what, found))

  def refuse(self, error: UserError | None, remedy: str = '') -> None:
    """Notes a problem, if it is one and the first."""
    if error is not None and not self.problem:
      self.problem, self.remedy = str(error), remedy


def _try(function: Callable[..., Any], *arguments: Any) -> tuple[Any, UserError | None]:
  """What a function returns and None, or None and the error that it raises."""
  try:
    return function(*arguments), None
  except UserError as error:
    return None, error


def look(data_config: Any) -> Report:
  """Looks at everything that `preparation.prepare_store` would use.

  Args:
    data_config: a configuration's `data` section.

  Returns:
    The report. A complete store needs nothing else, so nothing else is then a problem.
  """
  report = Report()
  if data_config.source in ('digits', 'synthetic'):
    report.add('images', f'{data_config.source}, made in memory: nothing to prepare')
    report.complete = True
    return report
  source, needs = None, []
  directory, error = _try(sources.data_directory, data_config)
  report.refuse(error)
  if error is None:
    look_at = _folder if data_config.source == 'folder' else _tfds
    source, needs = look_at(data_config, directory, report)
  path, error = _try(preparation.store_path, data_config)
  if error is None:
    _store(data_config, path, source, needs, report)
  return report


def _folder(
  data_config: Any, directory: pathlib.Path, report: Report
) -> tuple[Source | None, list[Need]]:
  source, error = _try(sources.open_source, data_config)
  report.refuse(error)
  if error is not None:
    report.add('image folder', f'{directory}: cannot be used')
    return None, []
  report.add(
    'image folder',
    f'{directory}: {len(source.train):,} training and '
    f'{len(source.eval):,} held-out images, {_classes(source)}',
  )
  if source.classes == imagenet.published_classes():
    counts = ' and '.join(f'{n:,}' for n in tfds_source.EXPECTED_COUNTS['imagenet2012'].values())
    report.add('', f'these are the classes of ILSVRC-2012, which has {counts}')
  return source, []


def _classes(source: Source) -> str:
  first = source.classes[0] + (f' ({source.class_names[0]})' if source.class_names else '')
  return f'{len(source.classes):,} classes from {first}'


def _tfds(
  data_config: Any, directory: pathlib.Path, report: Report
) -> tuple[Source | None, list[Need]]:
  origin = (
    'data.dir'
    if data_config.dir
    else ('$TFDS_DATA_DIR' if os.environ.get('TFDS_DATA_DIR') else 'the default')
  )
  report.add('TFDS directory', f'{directory} ({origin}){"" if directory.is_dir() else ": absent"}')
  builder, error = _try(tfds_source.find_builder, data_config.name, directory)
  report.refuse(error)
  if error is not None:
    return None, []
  for folder in tfds_source.left_overs(builder):
    report.add('left over', f'{folder}: delete it when no other preparation is running')
  path = pathlib.Path(builder.data_path)
  if not tfds_source.is_prepared(builder):
    report.add('data set', f'{path}: absent')
    for other in sorted(path.parent.glob('*/dataset_info.json')):
      report.add(
        '',
        f'there is {other.parent}: --config.data.name={builder.name}:'
        f'{other.parent.name} would use it',
      )
    return None, _ingredients(builder, directory, report)
  prepared, error = _try(tfds_source.as_prepared, builder)
  report.refuse(error, f'rm -r {shlex.quote(str(path))}')
  if error is not None:
    report.add('data set', f'{path}: cannot be read')
    return None, []
  report.add(
    'data set', f'{path}: {" and ".join(tfds_source.formats(prepared))}, ' + _counts(prepared)
  )
  for check, remedy in (
    (tfds_source.check_counts, f'rm -r {shlex.quote(str(path))}'),
    (tfds_source.check_format, tfds_source.convert_command(prepared)),
  ):
    report.refuse(_try(check, prepared)[1], remedy)
  source, error = _try(sources.open_source, data_config)
  report.refuse(error)
  if error is None:
    report.add('', _classes(source))
  return source, []


def _counts(prepared: Any) -> str:
  """Split sizes, with what they should be."""
  found = {name: split.num_examples for name, split in prepared.info.splits.items()}
  expected = tfds_source.EXPECTED_COUNTS.get(prepared.name, {})
  wrong = {
    name: f' (expected {count:,})' for name, count in expected.items() if count != found.get(name)
  }
  return ', '.join(
    f'{found.get(name, 0):,} {name}{wrong.get(name, "")}' for name in {**expected, **found}
  )


def _ingredients(builder: Any, directory: pathlib.Path, report: Report) -> list[Need]:
  """What TFDS needs to prepare a data set."""
  archives = tfds_prepare.archives(builder, directory)
  for file, size in archives.items():
    found = f'{file.stat().st_size:,} bytes' if file.is_file() else 'absent'
    report.add('archive', f'{file}: {found}, published size {size:,}')
  missing = shlex.join(file.name for file in archives if not file.is_file())
  _, error = _try(tfds_prepare.check_archives, builder, directory)
  manual = shlex.quote(str(tfds_prepare.manual_directory(directory)))
  report.refuse(error, f'mkdir -p {manual} && mv {missing} {manual}' if missing else '')
  _, error = _try(tfds_prepare.check_modules, builder)
  report.add('TensorFlow', 'there' if error is None else 'absent, needed to prepare the data set')
  report.refuse(error, tfds_source.INSTALL)
  _, error = _try(tfds_prepare.check_network, builder)
  report.add('network', 'not needed' if archives else 'there' if error is None else 'absent')
  report.refuse(error)
  return [('the TFDS data set', directory, sum(info.size for info in builder.url_infos.values()))]


def _store(
  data_config: Any, path: pathlib.Path, source: Source | None, needs: list[Need], report: Report
) -> None:
  encoding = preparation.encoding(data_config)
  folder = path.with_name(path.name + '.tmp')
  job = source and Job(
    source, folder, data_config.image_size, data_config.resize, writer.ROWS_PER_PART, encoding
  )
  if path.exists():
    found, error = _try(preparation.open_existing, path, data_config)
    if error is None:
      report.problem, report.complete = '', True
      report.add(
        'store',
        f'{path}: complete, {len(found.train):,} training and '
        f'{len(found.eval):,} held-out images, {encoding}',
      )
    else:
      report.add('store', f'{path}: cannot be used')
      report.refuse(error)
    return
  report.add('store', f'{path}: {_progress(folder, job)}')
  if job is not None:
    needs = [*needs, ('the store', path, job.missing_bytes())]
  elif published := tfds_source.EXPECTED_COUNTS.get(data_config.name):
    files = store.image_files(folder, data_config.image_size, encoding)
    needs = [*needs, ('the store', path, files.bytes_for(sum(published.values())))]
  _room(needs, report)


def _progress(folder: pathlib.Path, job: Job | None) -> str:
  """How far an interrupted preparation came."""
  if not folder.exists():
    return 'absent'
  if job is None:
    return f'absent; an interrupted preparation left {folder}'
  if not job.is_described_by('job.json'):
    return f'absent; {folder} is of another preparation and would be dropped'
  total = sum(len(job.parts(split)) for split in store.SPLITS)
  return f'interrupted, {total - len(job.waiting()):,} of {total:,} parts done'


def _room(needs: list[Need], report: Report) -> None:
  """Compares free room with what is needed, disk by disk."""
  disks: dict[int, tuple[pathlib.Path, list[tuple[str, int]]]] = {}
  for what, path, needed in needs:
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    disks.setdefault(folder.stat().st_dev, (folder, []))[1].append((what, needed))
  for folder, wants in disks.values():
    free, needed = shutil.disk_usage(folder).free, sum(size for _, size in wants)
    names = ' and '.join(f'{_gigabytes(size)} for {what}' for what, size in wants)
    report.add('disk', f'{folder}: {_gigabytes(free)} free, needed: {names}')
    report.refuse(_try(_check_room, folder, free, needed)[1])


def _check_room(folder: pathlib.Path, free: int, needed: int) -> None:
  if not os.access(folder, os.W_OK):
    raise UserError(f'{folder} cannot be written to: set --config.data.store to another place')
  if needed > free:
    raise UserError(
      f'{folder} has {_gigabytes(free)} free, {_gigabytes(needed)} are needed: free some, set '
      '--config.data.store to another disk, or try --config.data.encoding=jpeg'
    )


def _gigabytes(size: int) -> str:
  return f'{size / 1e9:,.1f} GB'
