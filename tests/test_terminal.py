"""What commands write for people."""

import io
import math
import re
import types
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import terminal
from alexnet_jax.terminal import Console, did_you_mean, duration, si
from alexnet_jax.train.finish import results_table
from alexnet_jax.train.schedules import Calendar
from alexnet_jax.train.throughput import progress_line


class Terminal(io.StringIO):
  def isatty(self):
    return True


def shown(stream):
  """The text on a terminal."""
  return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())


@pytest.fixture
def wide(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.setenv('COLUMNS', '120')


def test_plain_lines(tmp_path):
  stream, log = io.StringIO(), tmp_path / 'train.log'
  with redirect_stderr(stream), Console(log=log) as console:
    console.message('process 0/1, 1 of 1 devices, [cpu]')
    console.progress('epoch 12.0/90', 15000, 112500)
  lines = ['process 0/1, 1 of 1 devices, [cpu]', 'epoch 12.0/90']
  assert stream.getvalue().splitlines() == lines
  logged = log.read_text().splitlines()
  assert [line[21:] for line in logged] == lines
  assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ', line) for line in logged)


def test_progress_of_a_run():
  ninety, half = Calendar(160_000, 128, 90), Calendar(2560, 128, 0.5)
  errors = {'top1_error': 0.5119, 'top5_error': 0.2694, 'loss': 2.2}
  speed = {'images_per_second': 8140.4, 'data_wait': 0.0041}
  line = progress_line(ninety, 15000, 3.3, errors={}, speed=speed, rate=None)
  assert line == 'epoch 12.0/90  step 15,000/112,500  loss 3.30  8,140 img/s  (data 0.4%)'
  line = progress_line(ninety, 15500, 3.2141, errors=errors, speed=speed, rate=500 / 60)
  assert line == (
    'epoch 12.4/90  step 15,500/112,500  loss 3.21  val 51.2/26.9  8,140 img/s  (data 0.4%)'
    '  ETA 3h14m'
  )
  line = progress_line(ninety, 16000, 0.08449, errors=errors, speed={}, rate=None)
  assert line == 'epoch 12.8/90  step 16,000/112,500  loss 0.084  val 51.2/26.9'
  speed = {'images_per_second': 3.21, 'data_wait': 0.0}  # two classes have no top-5 error
  line = progress_line(half, 1, math.nan, errors={'top1_error': 0.25}, speed=speed, rate=None)
  assert line == 'epoch 0.1/0.5  step 1/10  loss nan  val 25.0  3.2 img/s  (data 0.0%)'


def test_terminal_shows_a_bar_and_the_same_facts(tmp_path, wide):
  stream = Terminal()
  with redirect_stderr(stream), Console(log=tmp_path / 'log') as console:
    console.progress('epoch 22.5/90', 50, 200)
    console.message('a [link] stays')
    console.progress('epoch 45.0/90  10 img/s', 100, 200)
  assert 'a [link] stays' in shown(stream)
  assert '━ epoch 45.0/90  10 img/s' in shown(stream)
  assert stream.getvalue().count('\x1b[?25h') == 1, 'the cursor is shown again'
  log = (tmp_path / 'log').read_text()
  assert '  epoch 45.0/90  10 img/s' in log and '\x1b' not in log


def test_count_on_a_terminal(wide):
  stream = Terminal()
  with redirect_stderr(stream), Console().count('images', 200, done=80) as advance:
    advance(20)
    advance(100)
  assert '200 of 200, ' in shown(stream) and 'per second, 0s left' in shown(stream)
  assert stream.getvalue().count('\x1b[?25h') == 1


def test_count_in_a_log(monkeypatch):
  """A line a second at first, one in half a minute later, and the last."""
  clock, said = 0.0, []
  monkeypatch.setattr(terminal, 'time', types.SimpleNamespace(monotonic=lambda: clock))

  class Log(io.StringIO):
    def write(self, text):
      said.extend([clock] if text.strip() else [])
      return super().write(text)

  log = Log()
  with redirect_stderr(log), Console().count('files') as advance:
    for _ in range(3000):
      clock += 0.125
      advance(1)
  pauses = np.diff([0.0, *said])
  assert (pauses[:58] < 1.2).all() and (pauses[61:] > 29).all() and len(said) < 80
  assert log.getvalue().splitlines()[0] == 'files: 8, 8 per second'


def test_a_terminal_that_hangs_up_does_not_end_the_run(tmp_path):
  class Gone(io.StringIO):
    def write(self, text):
      raise OSError(5, 'Input/output error')

  with redirect_stderr(Gone()), Console(log=tmp_path / 'log') as console:
    console.progress('step 1', 1, 10)
    console.message('still here')
  assert (tmp_path / 'log').read_text().count('\n') == 2


def test_results_table():
  results = {
    'eval/top1_error': 0.40721,
    'eval/top5_error': 0.1815,
    'eval/loss': 1.7431,
    'ten_views/top1_error': 0.3904,
    'parameters': 60_965_224,
    'epoch': 90.0,
    'images_per_second': 8140.4,
    'seconds': 11520,
    'other': 1,
  }
  paths = ['workdir     runs/digits', 'figures     runs/digits/figures']
  assert results_table(results, Path('runs/digits')).splitlines() == [
    '            top-1 error  top-5 error  top-1 accuracy  top-5 accuracy    loss',
    'eval             40.72%       18.15%          59.28%          81.85%  1.7431',
    'ten views        39.04%            -          60.96%               -       -',
    'parameters  60,965,224',
    'epoch       90',
    'images/s    8,140.4',
    'time        3h12m',
    *paths,
  ]
  assert results_table({'epoch': 2}, Path('runs/digits')).splitlines() == ['epoch       2', *paths]


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.2, '0s'), (59.6, '1m00s'), (725, '12m05s'), (3599.7, '1h00m'), (86399, '1d00h')],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0 B'), (999, '999 B'), (999.6, '1 kB'), (243_860_896, '244 MB'), (2.62e11, '262 GB')],
)
def test_si(value, text):
  assert si(value, 'B') == text


@pytest.mark.parametrize(
  'word, suggestion',
  [
    ('optimizer.lr', 'optimizer.learning_rate'),
    ('lr', 'optimizer.learning_rate'),
    ('seeds', 'seed'),
    ('views', 'eval.views'),
    ('nope', None),
    ('qqq', None),
  ],
)
def test_suggestion(word, suggestion):
  known = [
    'seed',
    'optimizer.learning_rate',
    'optimizer.momentum',
    'eval.views',
    'loss.ratio',
    'ungrouped',
  ]
  assert did_you_mean(word, known) == (f'did you mean {suggestion}?' if suggestion else '')
