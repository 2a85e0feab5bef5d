"""Checkpoints: what comes out is what went in, or an older one, or a clear refusal."""

import errno
import os
import random
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.run import checkpoint_files
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.checkpoint_list import print_checkpoints


def state_at(step):
  """A state that is a function of the step, with awkward dtypes, scalars and an empty branch."""
  draw = np.random.default_rng(step)
  kernel = draw.integers(0, 2**32, (5, 7, 3), dtype=np.uint32)
  return {
    'params': {
      'conv1': {
        'kernel': kernel.view(np.float32),  # with NaN payloads and denormals
        'bias': draw.standard_normal(11).astype(jnp.bfloat16),
      },
      'fc8': {'kernel': np.asfortranarray(draw.standard_normal((300, 40)))},
    },
    'batch_stats': {},
    'key': draw.integers(0, 2**32, 2, dtype=np.uint32),
    'step': np.int32(step),
    'skipped': np.array(True),
  }


def assert_state(state, step):
  expected = state_at(step)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert isinstance(found, np.ndarray) and found.dtype == wanted.dtype
    assert found.shape == wanted.shape and found.tobytes() == np.asarray(wanted).tobytes()


@pytest.fixture
def opened(tmp_path):
  """Opens checkpoints below tmp_path, and closes them at the end."""
  made = []

  def open_checkpoints(directory=tmp_path, **options):
    made.append(Checkpoints(directory, **options))
    return made[-1]

  yield open_checkpoints
  for checkpoints in made:
    checkpoints.close()


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
  """A directory with the steps 10 and 20, to be copied."""
  directory = tmp_path_factory.mktemp('pristine')
  checkpoints = Checkpoints(directory)
  for step in (10, 20):
    checkpoints.save(step, state_at(step), {'config': {'seed': step}})
  checkpoints.close()
  return directory


def hidden(directory):
  return [path.name for path in directory.rglob('.*')]


# What goes in comes out.


@pytest.mark.parametrize('name', ['plain', 'exp[1]', 'a\\b', '*?', os.fsdecode(b'\xff')])
def test_round_trip_is_exact_to_the_bit_in_a_folder_of_any_name(opened, name, tmp_path):
  writer = opened(tmp_path / name)
  assert writer.restore(state_at(0)) is None
  writer.save(7, state_at(7), {'config': {'rate': 0.1}, 'metrics': {'loss': float('nan')}})
  writer.wait()
  step, state, meta = opened(tmp_path / name, primary=False).restore(state_at(0))
  assert step == 7 and meta['config'] == {'rate': 0.1} and np.isnan(meta['metrics']['loss'])
  assert_state(state, 7)
  assert not hidden(tmp_path)


def test_plain_orbax_reads_the_arrays(pristine):
  with ocp.StandardCheckpointer() as orbax:
    state = orbax.restore(pristine / 'last' / '20' / 'state')
  np.testing.assert_array_equal(
    state['params']['fc8']['kernel'], state_at(20)['params']['fc8']['kernel']
  )
  assert state['params']['conv1']['bias'].dtype == jnp.bfloat16


def test_state_may_be_donated_or_overwritten_after_save(opened):
  checkpoints = opened()
  advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * -3 + 1, tree), donate_argnums=0)
  state = {'device': jnp.arange(4_000_000.0), 'step': jnp.int32(1)}
  state['host'] = np.zeros(1_000_000, np.float32)
  meta = {'metrics': {'loss': 1.0}}
  checkpoints.save(1, state, meta)
  device = state['device']
  for _ in range(5):
    device = advance(device)
  state['host'][:] = 9
  meta['metrics']['loss'] = 2.0
  assert state['device'].is_deleted()
  _, found, meta = checkpoints.restore(jax.eval_shape(lambda: {**state, 'device': device}))
  np.testing.assert_array_equal(found['device'], np.arange(4_000_000, dtype=np.float32))
  assert not found['host'].any() and meta['metrics']['loss'] == 1.0


def test_meta_that_json_cannot_write_is_refused_at_once(opened):
  with pytest.raises(TypeError, match='JSON'):
    opened().save(1, state_at(1), {'config': object()})


# Which steps there are.


def test_the_newest_two_and_the_best_one_are_kept_apart(opened, tmp_path):
  checkpoints = opened()
  for step in (1, 2, 3, 4):
    checkpoints.save(step, state_at(step), {})
    if step in (1, 2):
      checkpoints.save(step, state_at(step), {'metrics': {'top1': float('nan')}}, kind='best')
  checkpoints.wait()
  assert checkpoints.steps() == [3, 4] and checkpoints.steps('best') == [2]
  assert checkpoints.newest('best')[0] == 2
  assert not hidden(tmp_path)


def test_a_save_replaces_its_step_and_takes_the_later_ones_back(opened, pristine, caplog, tmp_path):
  shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
  checkpoints = opened()
  for step in (15, 16):
    checkpoints.save(15, state_at(step), {'value': step})
    _, state, meta = checkpoints.restore(state_at(0))
    assert_state(state, step)
    assert meta == {'value': step} and checkpoints.steps() == [10, 15]
  assert 'removing checkpoints [20]' in caplog.text


def test_only_the_primary_process_writes(opened, pristine, tmp_path):
  shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'last' / '20' / 'meta.json').unlink()
  (tmp_path / 'last' / '.saving-30').mkdir()
  before = sorted(tmp_path.rglob('*'))
  reader = opened(primary=False)
  reader.save(40, state_at(40), {})
  assert_state(reader.restore(state_at(0))[1], 10)
  opened(tmp_path / 'none', primary=False).close()
  assert sorted(tmp_path.rglob('*')) == before


# Damage.


def files_of(step):
  return sorted(str(path.relative_to(step)) for path in step.rglob('*') if path.is_file())


def flip_bit(path, seed=0):
  content = bytearray(path.read_bytes())
  bit = random.Random(f'{path.name}{seed}').randrange(8 * len(content))
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize('damage', [flip_bit, truncate, Path.unlink])
def test_damage_to_any_file_falls_back_and_says_so(damage, opened, pristine, caplog, tmp_path):
  names = files_of(pristine / 'last' / '20')
  assert len(names) > 6 and 'meta.json' in names
  for name in names:
    directory = tmp_path / name.replace('/', '-')
    shutil.copytree(pristine, directory)
    damage(directory / 'last' / '20' / name)
    checkpoints = opened(directory)
    caplog.clear()
    step, state, meta = checkpoints.restore(state_at(0))
    assert (step, meta) == (10, {'config': {'seed': 10}})
    assert_state(state, 10)
    assert f'{directory}/last/20 is damaged' in caplog.text and name in caplog.text
    assert checkpoints.steps() == [10] and (directory / 'last' / 'damaged-20').is_dir()
    checkpoints.save(20, state_at(21), {})
    assert_state(checkpoints.restore(state_at(0))[1], 21)


def test_every_flipped_bit_of_meta_is_noticed(pristine, tmp_path):
  path = tmp_path / '20'
  shutil.copytree(pristine / 'last' / '20', path)
  text = (path / 'meta.json').read_bytes()
  for bit in range(8 * len(text)):
    flipped = bytearray(text)
    flipped[bit // 8] ^= 1 << bit % 8
    (path / 'meta.json').write_bytes(flipped)
    with pytest.raises(checkpoint_files.DamagedError, match='meta.json'):
      checkpoint_files.read_record(path)


@pytest.mark.parametrize('place, value', [(2, 12345), (1, 'float16'), (0, [10**15])])
def test_arrays_that_differ_from_the_record_are_noticed(place, value, pristine, monkeypatch):
  """Were the files' checksums right, the arrays' own would still tell."""
  path = pristine / 'last' / '20'
  record = checkpoint_files.read_record(path)
  record['leaves']['params/fc8/kernel'][place] = value
  monkeypatch.setattr(checkpoint_files, 'read_record', lambda _: record)
  with pytest.raises(checkpoint_files.DamagedError, match='array params/fc8/kernel'):
    checkpoint_files.read_checkpoint(path)


def test_nothing_is_moved_and_nothing_starts_afresh_when_all_are_damaged(
  opened, pristine, tmp_path
):
  shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
  for step in ('10', '20'):
    flip_bit(tmp_path / 'last' / step / 'meta.json')
  checkpoints = opened()
  with pytest.raises(UserError, match=r'every checkpoint in .* is damaged \(20: .*10: '):
    checkpoints.restore(state_at(0))
  assert checkpoints.steps() == [10, 20]


def test_what_a_kill_leaves_is_swept_away(opened, pristine, caplog, tmp_path):
  shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
  last = tmp_path / 'last'
  shutil.copytree(last / '20', last / '.saving-30' / 'state.orbax-checkpoint-tmp')
  shutil.copytree(last / '10', last / '.deleting-5')
  (last / '.deleting-5' / 'meta.json').unlink()
  (last / '20').rename(last / '.replaced-20')  # killed between the two renames of a replacement
  (last / '40').mkdir()  # half deleted, by hand
  checkpoints = opened()
  assert '.saving-30' in caplog.text and not hidden(tmp_path)
  step, state, _ = checkpoints.restore(state_at(0))
  assert step == 20 and 'last/40 is damaged' in caplog.text
  assert_state(state, 20)


# Checkpoints that are good but of something else.


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda s: s['params']['fc8'].update(kernel=np.zeros((300, 41))),
      [r'params/fc8/kernel', r'float64\[300, 40\] in it', r'float64\[300, 41\] in this run'],
    ),
    (
      lambda s: s.update(key=np.zeros(2, np.int32)),
      [r'key is uint32\[2\] in it', r'int32\[2\] in this run'],
    ),
    (lambda s: s['params'].pop('conv1'), ['params/conv1/bias is bfloat16', 'missing in this run']),
    (lambda s: s.update(ema=np.zeros(2)), [r'ema is missing in it and float64\[2\] in this run']),
  ],
)
def test_a_misfit_is_refused_by_name(change, words, opened, pristine, tmp_path):
  shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
  target = state_at(0)
  change(target)
  checkpoints = opened()
  with pytest.raises(UserError, match='.*'.join(['last/20 does not fit', *words])) as error:
    checkpoints.restore(target)
  assert '\n' not in str(error.value) and checkpoints.steps() == [10, 20]


# When writing fails.


def tensorstore_full(*_, **__):
  raise ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device [OS error 28]')


def os_full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
  'owner, name, failure',
  [
    (ocp.Checkpointer, 'save', tensorstore_full),
    (Path, 'write_bytes', os_full),
    (files, 'sync', os_full),
    (shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 99, 1)),
  ],
)
def test_a_full_disk_harms_nothing(owner, name, failure, opened, caplog, tmp_path, monkeypatch):
  checkpoints = opened()
  checkpoints.save(1, state_at(1), {})
  checkpoints.wait()
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, failure)
    checkpoints.save(2, state_at(2), {})
    checkpoints.wait()
  assert 'quota is full' in caplog.text
  assert checkpoints.steps() == [1] and not hidden(tmp_path)
  checkpoints.save(3, state_at(3), {})
  assert_state(checkpoints.restore(state_at(0))[1], 3)


def test_other_errors_of_the_thread_are_raised_in_the_caller(opened, monkeypatch, tmp_path):
  checkpoints = opened()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint_files, 'write_checkpoint', lambda *_: 1 / 0)
    for surfaces in (
      checkpoints.wait,
      lambda: checkpoints.save(2, state_at(2), {}),
      lambda: checkpoints.restore(state_at(0)),
      checkpoints.close,
    ):
      checkpoints.save(1, state_at(1), {})
      with pytest.raises(ZeroDivisionError):
        surfaces()
  assert not hidden(tmp_path)


def test_the_first_save_is_read_back(opened, monkeypatch, tmp_path):
  save = ocp.Checkpointer.save

  def forgetful(self, directory, tree):
    save(self, directory, tree | {'step': np.array(0, np.int32)})

  checkpoints = opened()
  with monkeypatch.context() as patch:
    patch.setattr(ocp.Checkpointer, 'save', forgetful)
    checkpoints.save(1, state_at(1), {})
    with pytest.raises(UserError, match='^[^\n]*cannot be read back .*array step[^\n]*--workdir$'):
      checkpoints.wait()
  assert not checkpoints.steps() and not hidden(tmp_path)
  checkpoints.save(3, state_at(3), {})
  checkpoints.wait()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint_files, 'read_checkpoint', lambda *_: 1 / 0)
    checkpoints.save(4, state_at(4), {})  # once a process is enough
    checkpoints.wait()
  assert checkpoints.steps() == [3, 4]


def test_a_disk_that_goes_away_is_an_os_error(opened, monkeypatch):
  def gone(*_):
    raise ValueError('INTERNAL: Error writing "x": Input/output error [OS error 5]')

  checkpoints = opened()
  monkeypatch.setattr(ocp.Checkpointer, 'save', gone)
  checkpoints.save(1, state_at(1), {})
  with pytest.raises(OSError, match='orbax cannot write .*Input/output error'):
    checkpoints.wait()


# The list for people.


def test_the_list_has_sizes_metrics_and_health(opened, pristine, capsys, tmp_path):
  checkpoints = opened()
  checkpoints.save(3, state_at(3), {'metrics': {'eval/top1_error': 0.5}}, kind='best')
  checkpoints.close()
  last = tmp_path / 'last'
  shutil.copytree(pristine / 'last', last, dirs_exist_ok=True)

  def rows(verify):  # kind, step, size, metrics if there are any, health
    print_checkpoints(tmp_path, verify)
    return [tuple(re.split(' {2,}', line)) for line in capsys.readouterr().out.splitlines()[2:]]

  assert [row[-1] for row in rows(True)] == ['ok', 'ok', 'ok']
  shutil.copytree(last / '10', last / 'damaged-5')
  shutil.copytree(last / '10', last / '.saving-30')
  flip_bit(max((last / '20').rglob('*'), key=lambda path: path.stat().st_size))
  found = rows(False)
  assert [(row[0], row[1], row[-1]) for row in found] == [
    ('last', '5', 'damaged, set aside'),
    ('last', '10', 'complete'),
    ('last', '20', 'complete'),
    ('last', '30', 'unfinished'),
    ('best', '3', 'complete'),
  ]
  assert found[-1][3] == 'eval/top1_error 0.5' and found[1][2].endswith(' kB')
  with pytest.raises(UserError, match='^1 of 5 checkpoints in .* are damaged'):
    rows(True)
  health = [line.split('  ')[-1].split(':')[0] for line in capsys.readouterr().out.splitlines()[2:]]
  assert [each.strip() for each in health[1:]] == ['ok', 'damaged', 'unfinished', 'ok']
  with pytest.raises(UserError, match='no checkpoints'):
    print_checkpoints(tmp_path / 'none', False)
