"""The record of a run and the files it is kept in."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.run.metrics import MetricWriter, read_metrics


def _write_run(workdir, first, last, start_step):
  """Writes the lines of steps `first` to `last`, an evaluation every third."""
  writer = MetricWriter(workdir, start_step=start_step, tensorboard=False)
  for step in range(first, last + 1):
    writer.write(step, {'epoch': step / 10, 'train/loss': 1 / step})
    if step % 3 == 0:
      writer.write(step, {'eval/top1_error': 1 / (step + 1)})
  writer.close()


def _csv(workdir):
  with open(workdir / 'metrics.csv', newline='') as file:
    return list(csv.reader(file))


# --- files ---


def test_files_are_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'results.json'
  files.write_json(path, {'a': 1})
  old = path.read_bytes()

  def fail(_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
      files.write_json(path, {'a': 2})
  assert path.read_bytes() == old
  assert os.listdir(path.parent) == ['results.json']
  files.write(path, 'né\n')
  assert path.read_bytes() == b'n\xc3\xa9\n'
  (tmp_path / 'plain').write_text('')
  assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_paths_of_users(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert files.expand('~/x', '--workdir') == Path('/home/me/x')
  assert files.expand('a/~/x:y', '--workdir') == Path('a/~/x:y')
  for given, match in (
    ('gs://bucket/x', r'^--json=gs://bucket/x: not a folder or file of this machine'),
    ('S3://bucket/x', '--json=S3://bucket/x: not a folder'),
    ('~nobody-of-this-name/x', '--json=~nobody-of-this-name/x: there is no such home'),
  ):
    with pytest.raises(UserError, match=match) as caught:
      files.expand(given, '--json')
    assert '\n' not in str(caught.value)


def test_json_is_strict(tmp_path):
  value = {
    'nan': math.nan,
    'np': np.float64('inf'),
    'f32': np.float32(0.5),
    'n': np.arange(2),
    'p': tmp_path,
    'bytes': os.fsdecode(b'\xff'),
    3: (True, None),
  }
  assert json.loads(files.json_text(value).encode()) == {
    'nan': None,
    'np': None,
    'f32': 0.5,
    'n': [0, 1],
    'p': str(tmp_path),
    'bytes': '\udcff',
    '3': [True, None],
  }
  with pytest.raises(TypeError, match='not JSON serializable'):
    files.json_text(object())


# --- metrics.jsonl and metrics.csv ---


def test_lines_begin_with_the_step_and_have_no_nan(tmp_path):
  writer = MetricWriter(tmp_path, tensorboard=False)
  writer.write(np.int64(5), {'train/loss': np.float32(0.25), 'train/top1_error': math.nan})
  writer.write(6, {})
  assert (tmp_path / 'metrics.jsonl').read_text() == (
    '{"step": 5, "train/loss": 0.25, "train/top1_error": null}\n'
  )
  (record,) = read_metrics(tmp_path)
  assert record['train/loss'] == 0.25
  assert math.isnan(record['train/top1_error'])
  writer.close()
  writer.close()


@pytest.mark.parametrize('tail', [b'', b'{"step": 10, "tra', b'\0\0\0', b'12', b'["st"]\n'])
@pytest.mark.parametrize('killed_at', [5, 6, 9])
def test_resumed_run_leaves_the_files_of_an_unbroken_one(tmp_path, tail, killed_at):
  _write_run(tmp_path / 'unbroken', 1, 12, 0)
  _write_run(tmp_path / 'resumed', 1, killed_at, 0)
  with open(tmp_path / 'resumed' / 'metrics.jsonl', 'ab') as file:
    file.write(tail)
  _write_run(tmp_path / 'resumed', 6, 12, 5)
  for name in ('metrics.jsonl', 'metrics.csv'):
    expected = (tmp_path / 'unbroken' / name).read_bytes()
    assert (tmp_path / 'resumed' / name).read_bytes() == expected


def test_nothing_is_recorded_twice_at_a_step(tmp_path):
  """Saved at step 4 and killed in the evaluation after it: the evaluation is done again."""
  assert read_metrics(tmp_path) == []
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 1.0}')  # whole, but for the newline
  for _ in range(2):
    writer = MetricWriter(tmp_path, start_step=4, tensorboard=False)
    writer.write(4, {'eval/loss': 1})
    writer.close()
  assert read_metrics(tmp_path) == [{'step': 1, 'a': 1.0}, {'step': 4, 'eval/loss': 1.0}]


def test_damage_in_the_middle_is_told(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
  for read in (read_metrics, MetricWriter):
    with pytest.raises(UserError, match=r'metrics.jsonl, line 2, .*rubbish'):
      read(tmp_path)


def test_csv_grows_with_new_names_and_is_whole_after_each_evaluation(tmp_path):
  writer = MetricWriter(tmp_path, tensorboard=False)
  assert _csv(tmp_path) == [['step']]
  writer.write(1, {'train/loss': 3.0})
  writer.write(2, {'train/loss': 2.0, 'epoch': 0.5})
  writer.write(2, {'eval/loss': 2.5})
  assert _csv(tmp_path) == [
    ['step', 'train/loss', 'epoch', 'eval/loss'],
    ['1', '3.0', '', ''],
    ['2', '2.0', '0.5', '2.5'],
  ]
  writer.write(3, {'learning_rate': 0.01})
  writer.close()
  assert _csv(tmp_path)[0] == ['step', 'train/loss', 'epoch', 'eval/loss', 'learning_rate']
  assert _csv(tmp_path)[3] == ['3', '', '', '', '0.01']


# --- TensorBoard ---


def test_tensorboard_reads_what_was_written(tmp_path):
  pytest.importorskip('tensorboard', reason='reads the files with TensorBoard itself')
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  scalars = {'lärm': -math.inf, 'big': 1e300, 'nan': math.nan, 'small': 0.1}
  for start in (0, 5):  # the second takes back the steps from 6 on
    writer = MetricWriter(tmp_path, start_step=start)
    for step in range(start + 1, 10):
      writer.write(step, {'train/loss': step + start / 100})
    writer.write(2**40, scalars)
    writer.close()
  board = EventAccumulator(str(tmp_path)).Reload()
  points = [(point.step, round(point.value, 4)) for point in board.Scalars('train/loss')]
  assert points == [(step, step + (0.05 if step > 5 else 0)) for step in range(1, 10)]
  found = {name: board.Scalars(name) for name in scalars}
  assert all([point.step for point in points] == [2**40] for points in found.values())
  values = {name: points[0].value for name, points in found.items()}
  assert math.isnan(values.pop('nan'))
  assert values == {'lärm': -math.inf, 'big': math.inf, 'small': float(np.float32(0.1))}


def test_writing_and_reading_import_no_other_framework(tmp_path):
  code = """
import sys
from pathlib import Path
import alexnet_jax.terminal, alexnet_jax.results.figures
from alexnet_jax.run.metrics import MetricWriter
writer = MetricWriter(sys.argv[1])
writer.write(1, {'eval/loss': 1.0})
writer.close()
heavy = {'tensorflow', 'tensorboard', 'torch', 'jax', 'matplotlib', 'rich', 'google.protobuf'}
print(sorted(heavy & set(sys.modules)))
"""
  command = [sys.executable, '-W', 'error', '-c', code, tmp_path]
  assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == '[]\n'
