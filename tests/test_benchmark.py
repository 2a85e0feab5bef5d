"""The benchmark command: what it compares is the same computation, and what it reports adds up."""

import dataclasses
import gzip
import json
import math
import os
import statistics
import sys

import jax
import numpy as np
import optax
import pytest
from helpers.commands import ROOT, error_line, run

from alexnet_jax import config as configs
from alexnet_jax.benchmarks import race, step_task, time_step
from alexnet_jax.benchmarks.race import Options
from alexnet_jax.benchmarks.step_task import LossAndGrads, check_equal
from alexnet_jax.benchmarks.worker import Contestant, Unavailable, start_worker
from alexnet_jax.benchmarks.workload import Sample
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train.optimizer import krizhevsky_momentum

# The same computation.

EVERY_ROW = (
  layers.Conv('conv1', 8, 5, stride=2, ceil=True),
  layers.ResponseNorm('norm1', size=3, alpha=0.1, groups=2),
  layers.MaxPool('pool1'),
  layers.Relu('relu1'),
  layers.Conv('conv2', 12, 3, padding=1, groups=2),
  layers.SpatialNorm('spatial_norm2', size=3, alpha=0.1),
  layers.AvgPool('pool2'),
  layers.ResponseNorm('norm3', size=5, alpha=0.2, k=1.0),
  layers.Tanh('tanh3'),
  layers.Dropout('drop3'),
  layers.Dense('fc4', 20),
  layers.Dropout('drop4', inverted=True),
  layers.Relu('relu4'),
  layers.Dense('fc5', 7),
)
SHAPE = (20, 20, 3)
VIEWS = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)
LABELS = np.arange(6, dtype=np.int32)


@pytest.fixture(scope='module')
def ours():
  """Weights for EVERY_ROW, and our net's loss and gradients at them."""
  model = AlexNet(step_task.without_dropout(EVERY_ROW))
  initial = jax.eval_shape(model.init, jax.random.key(0), VIEWS)['params']
  weights = step_task.lively_weights(initial, last='fc5')

  @jax.jit
  @jax.value_and_grad
  def loss_of(weights):
    keys = jax.random.split(jax.random.key(0), len(VIEWS))
    logits = model.apply({'params': weights}, VIEWS, train=True, keys=keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

  loss, gradients = loss_of(weights)
  return weights, LossAndGrads(float(loss), jax.tree.map(np.asarray, gradients))


def task(table, weights, **changes):
  """A task; biases have twice the rate, and no decay."""
  rates = {layer: {'kernel': 0.1, 'bias': 0.2} for layer in weights}
  decays = {layer: {'kernel': 0.01, 'bias': 0.0} for layer in weights}
  settings = ('cpu', 'float32', 'momentum', 0.9)
  made = step_task.Task(table, SHAPE, *settings, VIEWS, LABELS, weights, rates, decays)
  return dataclasses.replace(made, **changes)


TOLERANCE = task((), {}).tolerance


def torch_step(table, weights, kind='TorchStep', **changes):
  pytest.importorskip('torch')
  from alexnet_jax.benchmarks import torch_step

  return getattr(torch_step, kind)(task(table, weights, **changes))


def test_the_torch_net_computes_what_ours_does_for_every_row(ours):
  weights, expected = ours
  actual = torch_step(EVERY_ROW, weights).loss_and_grads(weights)
  assert actual.loss == pytest.approx(expected.loss, rel=1e-6)
  assert set(actual.gradients) == {'conv1', 'conv2', 'fc4', 'fc5'}
  for layer, leaves in actual.gradients.items():
    assert set(leaves) == {'kernel', 'bias'}
    for name, gradient in leaves.items():
      reference = expected.gradients[layer][name]
      assert gradient.shape == reference.shape
      assert np.linalg.norm(gradient - reference) < 1e-5 * np.linalg.norm(reference), (layer, name)


@pytest.mark.parametrize(
  'name, changes',
  [
    ('norm1', {'groups': 1}),
    ('norm1', {'beta': 0.7}),
    ('spatial_norm2', {'size': 5}),
    ('pool1', {'window': 2}),
  ],
)
def test_another_net_is_refused(ours, name, changes):
  weights, expected = ours
  table = [dataclasses.replace(row, **changes) if row.name == name else row for row in EVERY_ROW]
  actual = torch_step(table, weights).loss_and_grads(weights)
  with pytest.raises(UserError, match='not the same computation'):
    check_equal('torch', expected, actual, TOLERANCE)


def changed(found, layer, name, gradient):
  gradients = {key: dict(leaves) for key, leaves in found.gradients.items()}
  gradients[layer][name] = gradient
  return found._replace(gradients=gradients)


def test_a_single_wrong_gradient_is_named(ours):
  _, expected = ours
  kernel = expected.gradients['conv2']['kernel']
  near = changed(expected, 'conv2', 'kernel', 1.001 * kernel)
  close = check_equal('peer', expected, near, TOLERANCE)
  assert close.where == 'conv2/kernel'
  assert close.gradient_difference == pytest.approx(0.001, rel=1e-3)
  for wrong in (1.02 * kernel, -kernel, 0 * kernel, np.nan * kernel):
    with pytest.raises(UserError, match=r'peer .* conv2/kernel'):
      check_equal('peer', expected, changed(expected, 'conv2', 'kernel', wrong), TOLERANCE)
  for loss in (expected.loss * 1.0001, math.nan, math.inf):
    with pytest.raises(UserError, match='its loss is'):
      check_equal('peer', expected, expected._replace(loss=loss), TOLERANCE)
  zero = changed(expected, 'fc4', 'bias', np.zeros(20, np.float32))
  assert check_equal('peer', zero, zero, TOLERANCE).gradient_difference == 0
  with pytest.raises(UserError, match='fc4/bias'):
    check_equal('peer', zero, expected, TOLERANCE)


def test_the_torch_update_is_that_of_2012(ours):
  torch = pytest.importorskip('torch')
  from alexnet_jax.benchmarks.torch_step import make_sgd

  weights, _ = ours
  work = task(EVERY_ROW, weights)
  tensors = jax.tree.map(torch.tensor, weights)
  theirs = make_sgd(tensors, work)
  rule = krizhevsky_momentum(0.9, work.decays)
  velocity = rule.init(weights)
  random = np.random.default_rng(1)
  for _ in range(3):
    gradients = jax.tree.map(lambda w: random.normal(size=w.shape).astype(np.float32), weights)
    updates, velocity = rule.update(gradients, velocity, weights, rates=work.rates)
    weights = jax.tree.map(lambda w, update: np.asarray(w + update), weights, updates)
    for layer, leaves in tensors.items():
      for name, tensor in leaves.items():
        tensor.grad = torch.tensor(gradients[layer][name])
    theirs.step()
  jax.tree.map(lambda t, w: np.testing.assert_allclose(t.numpy(), w, atol=1e-5), tensors, weights)


def test_images_may_lie_with_channels_last(ours):
  weights, expected = ours
  table = step_task.without_dropout(EVERY_ROW)
  peers = [torch_step(table, weights, kind) for kind in ('TorchStep', 'ChannelsLast')]
  check_equal('channels_last', expected, peers[1].loss_and_grads(weights), TOLERANCE)
  assert [peer.run(3) for peer in peers] == [18, 18]
  first, last = (peer.info()['loss'] for peer in peers)
  assert last == pytest.approx(first, rel=1e-5)
  assert last != pytest.approx(expected.loss, rel=1e-3)


def test_torch_drops_as_in_2012_or_inverted():
  torch = pytest.importorskip('torch')
  from alexnet_jax.benchmarks.torch_step import make_forward

  for inverted, unit in ((False, 1.0), (True, 1 / 0.3)):
    table = (layers.Dropout('drop', keep=0.3, inverted=inverted),)
    y = make_forward(table, (10_000,))({}, torch.ones(1, 10_000)).numpy()
    assert np.abs(y[y > 0] - unit).max() < 1e-5
    assert np.mean(y > 0) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'platform': 'gpu'}, 'JAX_PLATFORMS=cpu'),
    ({'optimizer': 'adam'}, 'adam'),
    ({'compute_dtype': 'bfloat16'}, 'bfloat16'),
    ({'table': (*EVERY_ROW, layers.BatchNorm('bn5'))}, 'BatchNorm'),
    ({'table': (layers.Local('local1', 6, 3), *EVERY_ROW)}, 'Local'),
  ],
)
def test_what_torch_is_not_written_for_it_declines(ours, changes, reason):
  weights, _ = ours
  with pytest.raises(Unavailable, match=reason):
    torch_step(**{'table': EVERY_ROW, 'weights': weights} | changes)


# Processes and turns.

FAKE = """
import os
import numpy as np
from alexnet_jax.benchmarks.roofline import Roofline
from alexnet_jax.benchmarks.step_task import LossAndGrads, Task
from alexnet_jax.benchmarks.worker import Unavailable
from alexnet_jax.benchmarks.workload import Workload
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers

class Fake(Workload):
  def __init__(self, **_):
    print('noise of a library')
    self.last_loss = float(os.environ['LAST_LOSS'])
    self.gradient = float(os.environ['GRADIENT'])
  def run(self, batches):
    with open(os.environ['LOG'], 'a') as file:
      file.write(os.environ['NAME'])
    return 4 * batches
  def fail(self, kind):
    raise {'user': UserError, 'unavailable': Unavailable}.get(kind, KeyError)(kind)
  def info(self):
    return {'name': os.environ['NAME'], 'loss': self.last_loss}
  def environment(self):
    return {'date': 'today'}
  def roofline(self):
    return Roofline('float32', 6e9, 1e9, 5, 7, 3e12, 1e11)
  def task(self):
    weights = {'fc1': {'kernel': np.zeros((3, 2)), 'bias': np.zeros(2)}}
    table = (layers.Dense('fc1', 2),)
    return Task(table, (3,), 'cpu', 'float32', '', 0, None, None, weights, {}, {})
  def loss_and_grads(self, weights):
    return LossAndGrads(1.0, {'fc1': {'kernel': self.gradient * weights['fc1']['kernel']}})
"""


@pytest.fixture
def fake(tmp_path):
  """Makes contestants that write their name into tmp_path/log at every run."""
  (tmp_path / 'fake.py').write_text(FAKE)

  def make(name, last_loss=1.0, gradient=1.0):
    settings = {'NAME': name, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    settings |= {'LAST_LOSS': str(last_loss), 'GRADIENT': str(gradient)}
    return Contestant(name, 'fake:Fake', settings | {'LOG': str(tmp_path / 'log')})

  return make


OPTIONS = Options(rounds=2, turn_seconds=0.0, peers=None)


def test_a_worker_has_its_own_settings_and_passes_errors_on(fake, capfd):
  with start_worker(fake('a')) as worker:
    assert worker.call('info')['name'] == 'a'
    with pytest.raises(UserError, match='user'):
      worker.call('fail', 'user')
    with pytest.raises(Unavailable, match='unavailable'):
      worker.call('fail', 'unavailable')
    with pytest.raises(RuntimeError, match=r'(?s)Traceback.*KeyError'):
      worker.call('fail', 'key')
    assert worker.call('run', 2) == 8
    worker.process.kill()
    with pytest.raises(UserError, match='process of a ended with code -9'):
      worker.call('run', 1)
  assert capfd.readouterr().out == ''


def test_contestants_take_turns_there_and_back(fake, tmp_path):
  raced = race.race({'alexnet_jax': fake('a'), 'b': fake('b')}, OPTIONS)
  # Two runs to prepare, then one that warms up before each that counts.
  assert (tmp_path / 'log').read_text() == 'aabb' + 'aabb' + 'bbaa'
  assert not raced['absent'] and raced['environment'] == {'date': 'today'}
  found = raced['contestants']
  assert found['b']['name'] == 'b'
  for contestant in found.values():
    assert [turn['images'] for turn in contestant['samples']] == [4, 4]
    assert all(turn['seconds'] > 0 for turn in contestant['samples'])


def measured_step(monkeypatch, ours, **peers):
  monkeypatch.setattr(time_step, '_OURS', ours)
  monkeypatch.setattr(time_step, 'PEERS', peers)
  return time_step.measure_step('digits', configs.default(), OPTIONS)


def test_peers_that_agree_are_measured_and_others_said_to_be_missing(fake, monkeypatch):
  absent = Contestant('missing', 'no_such_package:Fake')
  result = measured_step(
    monkeypatch, fake('ours'), peer=fake('peer', gradient=1.001), missing=absent
  )
  assert list(result.contestants) == ['alexnet_jax', 'peer']
  equality = result.details['equality']['peer']
  assert equality['gradient_difference'] == pytest.approx(0.001, rel=1e-3)
  assert 'gradients by at most 1.0e-03, in fc1/kernel (allowed 0.01)' in result.table()
  reason = 'no_such_package is not installed: pip install no_such_package'
  assert f'missing was not measured: {reason}' in result.table()


@pytest.mark.parametrize(
  'fault, message',
  [({'gradient': 1.1}, 'no ratio is given'), ({'last_loss': math.nan}, 'loss of peer became nan')],
)
def test_a_peer_that_differs_or_diverges_is_refused(fake, monkeypatch, fault, message):
  with pytest.raises(UserError, match=message):
    measured_step(monkeypatch, fake('ours'), peer=fake('peer', **fault))


def test_a_python_without_our_packages_is_not_measured(tmp_path):
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  python.chmod(0o755)
  ours = Contestant('ours', 'alexnet_jax.benchmarks.our_step:OurStep', python=str(python))
  with (
    pytest.raises(Unavailable, match='is not installed: pip install'),
    start_worker(ours, config={}),
  ):
    pass


# The report.


@pytest.mark.parametrize(
  'measure, ratio',
  [('per_second', (0.5, 0.375, 0.75)), ('per_core_second', (0.5, 0.5, 0.75))],
)
def test_ratios_are_taken_round_by_round(measure, ratio):
  ours = [Sample(100, 2.0, 4.0), Sample(100, 1.0, 2.0), Sample(100, 4.0, 4.0)]
  peer = race.speeds(3 * [Sample(100, 1.0, 2.0)], ours, measure)
  median, low, high = ratio
  assert peer['ratio'] == {'median': median, 'lower_quartile': low, 'upper_quartile': high}
  found = race.speeds(ours, ours, measure)
  assert found['per_second']['median'] == 50 and 'ratio' not in found
  assert found['samples'][1] == {'images': 100, 'seconds': 1.0, 'core_seconds': 2.0}
  table = {'alexnet_jax': found | {'title': 'alexnet_jax'}, 'peer': peer | {'title': 'peer'}}
  heading, first, last = race.speed_table(table, 10, measure)
  assert first.split()[:5] == ['alexnet_jax', '200.0', '50.00', '37.50', '-']
  assert len(heading) == len(last) and last.endswith(f'0.500  {low:.3f} - {high:.3f}')
  assert set(race.spread([3.0]).values()) == {3.0}  # of one round


# The command.


def measured(tmp_path, *arguments):
  """What is printed, and the one result in the JSON file, of turns as short as can be."""
  file = tmp_path / 'found.json'
  done = run('alexnet_jax.benchmark', *arguments, '--turn_seconds=0', f'--json={file}')
  assert done.returncode == 0, done.stderr
  (result,) = json.loads(file.read_text())['results']
  return done.stdout, result


@pytest.mark.slow
def test_step_from_the_command_line(tmp_path):
  """The real step of a net with crops, standardization, LRN and dropout, against real torch."""
  pytest.importorskip('torch')
  peers = ('--peers=eager', f'--python={sys.executable}', f'--profile={tmp_path / "traces"}')
  options = ('--config=configs/digits.py', '--batch_sizes=8', '--rounds=2')
  printed, found = measured(tmp_path, 'step', *options, *peers)
  assert 'step: digits, net digits, batch 8' in printed
  assert found['environment']['versions']['jax'] and found['environment']['cores'] >= 1
  details = found['details']
  assert details['config']['batch_size'] == details['batch_size'] == 8
  equality = details['equality']['eager']
  assert equality['loss'] == pytest.approx(equality['our_loss'], rel=1e-5)
  assert 0 < equality['gradient_difference'] < 0.01
  # conv1: 28x28x32 outputs of 5x5x3 products, and so on; conv1's input needs no gradient.
  conv1, *others = 28**2 * 32 * 75, 14**2 * 64 * 800, 7**2 * 64 * 576, 576 * 128, 128 * 10
  assert details['roofline']['flop'] == 8 * 2 * (2 * conv1 + 3 * sum(others))
  assert details['roofline']['temporary_bytes'] > 0
  assert details['utilization'] > 0 and details['bandwidth_share'] > 0
  (trace,) = (tmp_path / 'traces' / 'digits-8').rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  assert any('hlo_op' in event.get('args', {}) for event in events)
  again = f'alexnet_jax, {sys.executable}'
  assert list(found['contestants']) == ['alexnet_jax', again, 'eager']
  assert details['equality'][again]['gradient_difference'] == 0
  assert printed.count(f'\n{again}  ') == 1  # a row of the table
  ours, peer = found['contestants']['alexnet_jax'], found['contestants']['eager']
  assert 'hugetlb' in peer['settings']['GLIBC_TUNABLES'] and peer['versions']['torch']
  assert not ours['settings'].get('GLIBC_TUNABLES')  # measured as users run it
  speeds = [[turn['images'] / turn['seconds'] for turn in each['samples']] for each in (ours, peer)]
  ratios = [mine / theirs for mine, theirs in zip(*speeds, strict=True)]
  assert peer['ratio']['median'] == pytest.approx(statistics.median(ratios))


@pytest.mark.slow
def test_saves_of_a_small_net(tmp_path):
  options = ('--config=configs/digits.py', '--batch_sizes=8', '--rounds=3')
  printed, found = measured(tmp_path, 'checkpoint', *options)
  # Weights and velocities, 4 bytes each, and the step and the skipped steps.
  parameters = 75 * 32 + 32 + 800 * 64 + 64 + 576 * 64 + 64 + 576 * 128 + 128 + 1280 + 10
  assert found['details']['bytes'] == 8 * parameters + 8
  seconds = found['details']['seconds']
  assert len(seconds['a restore']) == 3 and min(seconds['a restore']) > 0
  for hold, save in zip(seconds['a save holds the loop'], seconds['a save in all'], strict=True):
    assert 0 < hold < save
  assert all(line in printed for line in found['lines'])


@pytest.mark.slow
@pytest.mark.parametrize('steps', [1, 3])
def test_loop_is_fed_from_the_store(tmp_path, steps):
  """Steps on digits of scikit-learn beside the same step on one batch; a turn is a call."""
  many = ('--config.batch_size=2', f'--config.steps_per_call={steps}')
  options = ('--config=configs/digits.py', *many, '--rounds=2')
  printed, found = measured(tmp_path, 'loop', *options)
  wait = found['details']['data_wait']
  assert 0 <= wait < 1 and f'{wait:.2%} of the time was spent waiting for data' in printed
  for contestant, images in (('alexnet_jax', 2 * steps), ('step_alone', 2)):
    samples = found['contestants'][contestant]['samples']
    assert [turn['images'] for turn in samples] == [images, images]


@pytest.mark.slow
def test_feed(tmp_path):
  printed, found = measured(tmp_path, 'feed', '--rounds=1', '--num_images=200')
  assert 'goal: 40,000 images/core-s' in printed
  (turn,) = found['contestants']['alexnet_jax']['samples']
  assert turn['images'] == 128 and turn['core_seconds'] > 0
  assert found['environment']['versions']['numpy']
  # tf.data and torch's DataLoader do the same work, or are said to be missing.
  peers = {'tf_data', 'data_loader'}
  assert set(found['contestants']) | set(found['absent']) == {'alexnet_jax', *peers}
  for name in peers & found['contestants'].keys():
    assert found['contestants'][name]['ratio']['median'] > 0
  for name, reason in found['absent'].items():
    assert f'{name} was not measured: {reason}' in printed and 'pip install' in reason


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['stp'], "'stp' is not known: did you mean step?"),
    (['feed', '--peers=eager,tensor'], "--peers: 'tensor' is not known: choose from eager,"),
    (['--batch_sizes=32,many', 'step'], '--batch_sizes=32,many: must be whole numbers'),
    (['--batch_sizes=0', 'step'], 'config.batch_size=0: must be at least 1'),
    (['--rounds=0'], 'flag --rounds=0'),
    (['feed', '--profile=traces'], 'add the word step'),
    (['feed', '--python=python3'], 'add the word step'),
    (['step', '--config=configs/digits.py', '--python=/absent'], '/absent cannot be run'),
  ],
)
def test_a_wrong_flag_is_one_line(arguments, message):
  done = run('alexnet_jax.benchmark', *arguments)
  assert message in error_line(done) and done.stdout == '' and done.stderr.count('\n') == 1
