"""Many steps a call: the same examples, views, masks and evaluations as one step a call."""

import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.same_ends import assert_same_ends, final

from alexnet_jax import config as configs
from alexnet_jax.data import order
from alexnet_jax.errors import Diverged, Interrupted, UserError
from alexnet_jax.model import nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import BatchNorm, Conv, Dense, Dropout, MaxPool, Relu
from alexnet_jax.run.metrics import read_metrics
from alexnet_jax.train import finish, loop
from alexnet_jax.train.devices import Devices
from alexnet_jax.train.multi_step import calls, train_rows
from alexnet_jax.train.throughput import Throughput

EXAMPLES, BATCH, STEPS = 40, 16, 10  # four epochs whose ends lie within batches


def tiny(classes):
  return (
    Conv('conv1', 4, 3, padding=1, init='he'),
    Relu('relu1'),
    MaxPool('pool1'),
    Dense('fc2', 16, init='he'),
    Relu('relu2'),
    Dropout('drop2'),
    Dense('fc3', classes, init='he'),
  )


@pytest.fixture(scope='module', autouse=True)
def quick_runs():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(nets.NETS, 'digits', tiny)
    patch.setattr(finish, '_draw_figures', lambda *arguments: None)  # nobody looks at them
    yield


def config_of(steps_per_call, **changes):
  config = configs.default()
  config.steps_per_call = steps_per_call
  config.epochs, config.batch_size, config.seed = STEPS * BATCH / EXAMPLES, BATCH, 3
  config.model.net = 'digits'
  config.data.source, config.data.num_classes, config.data.image_size = 'synthetic', 4, 12
  config.data.synthetic_examples = EXAMPLES
  config.input.crop = 9
  config.input.normalization, config.input.scale = 'mean_image', 0.02
  config.optimizer.learning_rate = 0.02
  config.eval.every_epochs, config.eval.batch_size = 2.0, 8
  config.checkpoint.every_epochs = 2.0
  config.log.every_steps, config.log.tensorboard = 4, False
  config.update_from_flattened_dict(changes)
  configs.validate(config)
  return config


def train(workdir, steps_per_call, device_count=8, **changes):
  with pytest.MonkeyPatch.context() as patch:
    if device_count == 1:
      patch.setattr(loop, 'Devices', Devices.single)
    loop.train(config_of(steps_per_call, **changes), workdir, command='test')
  return workdir


def spied(workdir, *arguments):
  """Trains; returns {key of an example's dropout: bytes of its view}, of all steps."""
  seen, apply = {}, AlexNet.apply

  def record(views, keys):
    for view, key in zip(np.asarray(views), np.asarray(keys), strict=True):
      assert key.tobytes() not in seen
      seen[key.tobytes()] = view.tobytes()

  def spy(model, variables, images, **settings):
    if settings.get('train'):
      jax.debug.callback(record, images, jax.random.key_data(settings['keys']))
    return apply(model, variables, images, **settings)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(AlexNet, 'apply', spy)
    train(workdir, *arguments)
  jax.effects_barrier()
  return seen


@pytest.fixture(scope='module', params=[1, 8])
def one_and_three(request, tmp_path_factory):
  """What runs of one and of three steps a call saw, and their workdirs."""
  folder = tmp_path_factory.mktemp(f'on_{request.param}')
  return [
    (spied(folder / str(steps), steps, request.param), folder / str(steps)) for steps in (1, 3)
  ]


@pytest.mark.slow
def test_examples_views_and_masks_are_the_same(one_and_three):
  (seen, _), (seen_in_threes, _) = one_and_three
  assert len(seen) == STEPS * BATCH and len(set(seen.values())) > 0.9 * len(seen)
  assert seen_in_threes == seen


@pytest.mark.slow
def test_everything_happens_at_the_same_steps(one_and_three):
  """Evaluations and saves at 5 and 10, lines at the first and every fourth step too."""
  records = [read_metrics(workdir) for _, workdir in one_and_three]
  steps = [[(r['step'], 'eval/loss' in r) for r in found] for found in records]
  assert steps[0] == steps[1]
  assert steps[0] == [(1, False), (4, False), (5, False), (5, True), (8, False), (10, False)] + [
    (10, True)
  ]
  saved = [sorted(p.name for p in (w / 'checkpoints/last').iterdir()) for _, w in one_and_three]
  assert saved[0] == saved[1] == ['10', '5']
  for one, three in zip(*records, strict=True):
    assert one.keys() == three.keys()
    for name in one.keys() - {'seconds', 'images_per_second', 'data_wait'}:
      assert three[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.slow
def test_the_ends_are_close(one_and_three):
  one, three = (final(workdir) for _, workdir in one_and_three)
  for name, value in one.items():
    np.testing.assert_allclose(three[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_run_stopped_within_a_call_ends_with_the_same_bits(tmp_path, monkeypatch):
  """Stopped at step 7, two steps after a checkpoint; then calls begin elsewhere."""
  add, workdir = Throughput.add, tmp_path / 'run'
  made = []

  def stopped(throughput, step, metrics):
    add(throughput, step, metrics)
    made.append(step)
    if made == [1, 3, 4, 5, 7]:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(Throughput, 'add', stopped)
  with pytest.raises(Interrupted, match='at step 7,'):
    train(workdir, 2)
  train(workdir, 2)
  assert made[5:] == [8, 10]
  assert final(workdir)['step'] == STEPS
  assert_same_ends(train(tmp_path / 'undisturbed', 2), workdir)


@pytest.mark.slow
def test_all_that_a_state_can_hold(tmp_path, monkeypatch):
  """Running moments, an average, Adam's moments, a plateau's scale; with a loop inside the loop."""
  normalized = (*tiny(4)[:1], BatchNorm('bn1'), *tiny(4)[1:])
  monkeypatch.setitem(nets.NETS, 'digits', lambda classes: normalized)
  settings = {
    'grad_accum_steps': 2,
    'model.ghost_batch': 8,
    'ema_decay': 0.9,
    'label_smoothing': 0.1,
    'optimizer.name': 'adam',
    'optimizer.learning_rate': 0.001,
    # conv1's bias has no gradient before a batch norm but rounding, which Adam would blow up.
    'optimizer.epsilon': 0.001,
    'optimizer.schedule.kind': 'plateau',
    'optimizer.schedule.patience': 1,
  }
  one, three = (final(train(tmp_path / str(k), k, 1, **settings)) for k in (1, 3))
  assert {name.split('/')[1] for name in one if '/' in name} >= {'batch_stats', 'ema', 'plateau'}
  for name, value in one.items():
    np.testing.assert_allclose(three[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_steps_that_are_not_finite_end_the_run(tmp_path):
  with pytest.raises(Diverged, match='^3 steps in a row up to step 4 '):
    train(
      tmp_path / 'run', 4, 1, **{'optimizer.learning_rate': 1e30, 'guard.max_nonfinite_steps': 3}
    )


def test_images_that_do_not_fit_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Devices, 'memory_bytes', lambda self: 12 * 12 * 3 * EXAMPLES - 1)
  with pytest.raises(UserError) as refused:
    train(tmp_path / 'run', 2)
  for part in ('config.steps_per_call=2', ' 40 training images', '--config.steps_per_call=1'):
    assert part in str(refused.value)
  assert not (tmp_path / 'run').exists()
  monkeypatch.setattr(Devices, 'memory_bytes', lambda self: 12 * 12 * 3 * EXAMPLES)
  train(tmp_path / 'run', 2, 1, epochs=0.1)


@pytest.mark.parametrize('most', [1, 3, 100])
def test_calls_hold_every_step_once_and_end_where_the_host_has_to_act(most):
  found = list(calls(5, 40, most, {7, 8, 20}.__contains__))
  assert [step for call in found for step in call] == list(range(5, 40))
  assert {7, 8, 20, 40} <= {call.stop for call in found}
  assert max(map(len, found)) == min(most, 20)
  assert list(calls(5, 5, most, bool)) == []


@pytest.mark.parametrize('count', [1, 2])
def test_rows_are_those_of_the_feed(count):
  """Of each process, also where a batch straddles epochs."""
  for index in range(count):
    part = slice(index * 12 // count, (index + 1) * 12 // count)
    config = SimpleNamespace(batch_size=12, seed=2, steps_per_call=4)
    process = SimpleNamespace(process_index=index, process_count=count)
    steps = [range(4), range(4, 5), range(5, 9)]
    with train_rows(45, config, process, steps) as batches:
      for call, batch in zip(steps, batches, strict=True):
        assert batch['row'].dtype == batch['position'].dtype == np.int32
        assert batch['position'].tolist() == list(range(12))[part]
        assert batch['row'].shape == (12 // count, 4)
        for column, step in enumerate(call):
          assert np.array_equal(batch['row'][:, column], order.rows(2, step, 12, 45)[part])
        assert (batch['row'][:, len(call) :] == -1).all()
