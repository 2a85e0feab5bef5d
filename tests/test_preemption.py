"""Asked to stop, or robbed of its disk, a run loses nothing; and what may not change cannot."""

import json
import os
import shutil
import signal
import time

import pytest
from helpers.same_ends import assert_same_ends

from alexnet_jax import config as configs
from alexnet_jax.errors import DiskFailed, Interrupted, UserError
from alexnet_jax.model import nets
from alexnet_jax.model.layers import Conv, Dense, Relu
from alexnet_jax.run.metrics import MetricWriter, read_metrics
from alexnet_jax.train import finish, loop
from alexnet_jax.train.devices import Devices
from alexnet_jax.train.evaluation import Evaluator
from alexnet_jax.train.preemption import StopSignal

pytestmark = pytest.mark.slow


def tiny(classes):
  return (Conv('conv1', 4, 3), Relu('relu1'), Dense('fc2', classes))


@pytest.fixture(scope='module', autouse=True)
def quick_runs():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(nets.NETS, 'digits', tiny)
    patch.setattr(loop, 'Devices', Devices.single)
    patch.setattr(finish, '_draw_figures', lambda *arguments: None)
    yield


def train(workdir, allowed=(), **changes):
  config = configs.default()
  config.epochs, config.batch_size = 3.0, 16
  config.model.net, config.model.onednn = 'digits', 'off'
  config.data.source, config.data.num_classes, config.data.image_size = 'synthetic', 7, 12
  config.data.synthetic_examples = 48
  config.input.crop, config.input.scale = 9, 0.02
  config.optimizer.schedule.kind, config.optimizer.schedule.patience = 'plateau', 1
  config.eval.batch_size = 2
  config.log.every_steps, config.log.tensorboard = 1, False
  config.update_from_flattened_dict(changes)
  configs.validate(config)
  return loop.train(config, workdir, command='python -m main --workdir x --seed=1', allowed=allowed)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  return workdir, train(workdir)


def steady(records):
  """Without what depends on time."""
  timed = ('seconds', 'images_per_second', 'data_wait')
  return [{k: v for k, v in record.items() if k not in timed} for record in records]


def assert_same_end(workdir, undisturbed):
  assert_same_ends(undisturbed[0], workdir)
  assert steady(read_metrics(workdir)) == steady(read_metrics(undisturbed[0]))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('before_it, step', [(0, 3), (2, 9)])
def test_an_evaluation_is_broken_off(before_it, step, number, undisturbed, tmp_path, capfd):
  """In the middle of the run and at its end, whose evaluation has the final views as well."""
  evaluate, begun, done = Evaluator.predictions, [], []

  def interrupted(self, params, batch_stats, views, advance):
    begun.append(views)

    def count(images):
      if len(begun) > before_it:
        if not done:
          os.kill(os.getpid(), number)
        done.append(images)
      advance(images)

    return evaluate(self, params, batch_stats, views, count)

  name = signal.Signals(number).name
  before = {n: signal.getsignal(n) for n in StopSignal._SIGNALS}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Evaluator, 'predictions', interrupted)
    with pytest.raises(Interrupted, match=f'^stopped by {name} at step {step}, which is saved; '):
      train(tmp_path / 'run')
  assert {n: signal.getsignal(n) for n in StopSignal._SIGNALS} == before
  assert len(done) == 1  # of several batches
  assert f'\n{name}: stopping once the state is saved; Ctrl-C' in capfd.readouterr().err
  results = train(tmp_path / 'run')
  assert results['eval/loss'] == undisturbed[1]['eval/loss']
  assert_same_end(tmp_path / 'run', undisturbed)


def test_a_second_interrupt_leaves_at_once():
  with StopSignal(quiet=True) as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored():
  previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not stop.requested
  finally:
    signal.signal(signal.SIGHUP, previous)


def test_the_last_state_is_evaluated_once(tmp_path, monkeypatch):
  views, evaluate = [], Evaluator.predictions
  monkeypatch.setattr(
    Evaluator,
    'predictions',
    lambda *arguments: (views.append(arguments[3]), evaluate(*arguments))[1],
  )
  train(tmp_path / 'one')
  assert views == [1, 1, 1]
  views.clear()
  train(tmp_path / 'ten', **{'eval.final_views': 10})
  assert views == [1, 1, 1, 10]


def test_checkpoints_know_what_they_are_worth(undisturbed):
  workdir, results = undisturbed
  found = []
  for kind in ('last', 'best'):
    folder = workdir / 'checkpoints' / kind
    for step in sorted(folder.glob('[0-9]*'), key=lambda path: int(path.name)):
      meta = json.loads((step / 'meta.json').read_text())['checkpoint']['meta']
      found.append((kind, meta['metrics']['eval/top1_error']))
  errors = {r['step']: r['eval/top1_error'] for r in read_metrics(workdir) if 'eval/loss' in r}
  assert found == [
    ('last', errors[6]),
    ('last', errors[9]),
    ('best', min(errors.values())),
  ]
  assert results['eval/top1_error'] == errors[9]


def test_a_finished_run_that_was_moved_knows_where_it_is(undisturbed, tmp_path, capsys):
  shutil.copytree(undisturbed[0], tmp_path / 'elsewhere')
  train(tmp_path / 'elsewhere')
  shown = capsys.readouterr().out
  assert f'{tmp_path}/elsewhere/figures' in shown and str(undisturbed[0]) not in shown


@pytest.mark.parametrize('change', [{'batch_size': 8}, {'data.synthetic_examples': 64}])
def test_the_steps_of_an_epoch_cannot_change(change, undisturbed):
  (field,) = change
  with pytest.raises(UserError, match=f'{field} cannot change: checkpoints count steps') as refused:
    train(undisturbed[0], **change)
  assert '--allow_change' not in str(refused.value)
  assert str(refused.value).endswith(f' --workdir={undisturbed[0]}-2')


def test_other_images_are_refused(undisturbed, tmp_path, monkeypatch):
  """As of a folder that has been filled since."""
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed[0], workdir)
  prepare = loop.prepare_store

  def prepare_more(data):
    data = data.copy_and_resolve_references()
    data.synthetic_examples = 64
    return prepare(data)

  monkeypatch.setattr(loop, 'prepare_store', prepare_more)
  with pytest.raises(UserError, match=r'other images .* \(48 training images then, 64 now\)'):
    train(workdir, epochs=4.0)


def test_more_devices_than_the_batch_divides_over(undisturbed, monkeypatch):
  devices = Devices.single()
  devices.global_count = 6
  monkeypatch.setattr(loop, 'Devices', lambda: devices)
  with pytest.raises(UserError, match='=16 is not divisible by 6 devices: the run .* resume'):
    train(undisturbed[0])


def test_a_disk_that_goes_away(tmp_path, monkeypatch):
  write = MetricWriter.write

  def fail(self, step, scalars):
    if step == 5:
      raise OSError(5, 'Input/output error')
    write(self, step, scalars)

  with monkeypatch.context() as patch:
    patch.setattr(MetricWriter, 'write', fail)
    with pytest.raises(DiskFailed, match='^Input/output error; what was saved is in .*resumes'):
      train(tmp_path / 'run')
  train(tmp_path / 'run')

  link = tmp_path / 'link'
  link.symlink_to(tmp_path / 'target')
  (tmp_path / 'target').mkdir()

  def unplug(self, step, scalars):
    if step == 5:
      while not (link / 'run/checkpoints/last/3').exists():  # no save is under way
        time.sleep(0.01)
      (tmp_path / 'target').rename(tmp_path / 'unplugged')
    write(self, step, scalars)

  with monkeypatch.context() as patch:
    patch.setattr(MetricWriter, 'write', unplug)
    with pytest.raises(DiskFailed, match=f'^{link}/run is gone; what was saved is in '):
      train(link / 'run')
  (tmp_path / 'unplugged').rename(tmp_path / 'target')
  train(link / 'run')
  assert_same_ends(tmp_path / 'run', link / 'run')
