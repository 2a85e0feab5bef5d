"""The update rules against float64 NumPy, optax and torch; the rates against published tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.commands import get_config

from alexnet_jax import config as configs
from alexnet_jax.train import schedules
from alexnet_jax.train.optimizer import adam, krizhevsky_momentum, larc, weight_decay_tree
from alexnet_jax.train.schedules import Calendar

SHAPES = {'conv1': {'kernel': (3, 4), 'bias': (4,)}, 'fc2': {'kernel': (4, 2), 'bias': (2,)}}
LEAVES = [(layer, name) for layer, leaves in SHAPES.items() for name in leaves]


def random_tree(seed):
  rng = np.random.default_rng(seed)
  return {
    layer: {name: rng.normal(size=shape).astype(np.float32) for name, shape in leaves.items()}
    for layer, leaves in SHAPES.items()
  }


def filled(value):
  return {layer: dict.fromkeys(leaves, value) for layer, leaves in SHAPES.items()}


def run(optimizer, rates_of, steps, gradients_of=random_tree):
  """The parameters after each step; rates_of(step) is a tree."""
  params = random_tree(1000)
  state = optimizer.init(params)

  @jax.jit
  def update(params, state, gradients, rates):
    updates, state = optimizer.update(gradients, state, params, rates=rates)
    return optax.apply_updates(params, updates), state

  history = []
  for step in range(steps):
    rates = jax.tree.map(jnp.float32, rates_of(step))
    params, state = update(params, state, gradients_of(step), rates)
    history.append(jax.tree.map(np.asarray, params))
  return history


def assert_same(found, expected, rtol=1e-5):
  for a, b in zip(found, expected, strict=True):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def dropping(step):
  """A rate that falls by ten twice, biases at twice that."""
  rate = 0.1 * 0.1 ** (step // 5)
  return {
    layer: {name: rate * (2 if name == 'bias' else 1) for name in leaves}
    for layer, leaves in SHAPES.items()
  }


def decays_of(params, weight_decay, layers, biases):
  optimizer = configs.default().optimizer
  optimizer.weight_decay, optimizer.decay_biases = weight_decay, biases
  optimizer.layer_weight_decay = layers
  return weight_decay_tree(params, optimizer)


# The 2012 rule.


@pytest.mark.parametrize('trust', [None, 0.5], ids=['2012', 'larc'])
def test_2012_rule_in_float64(trust):
  """v <- .9 v - wc rate w - rate gradient; w <- w + v, over drops of the rate.

  With LARC the rate is at most .1 trust |w| / |gradient|: clipped at first, not at the end.
  """
  decay = decays_of(SHAPES, 0.05, {'fc2': 0.5}, False)
  rule = larc(0.9, decay, trust) if trust else krizhevsky_momentum(0.9, decay)
  found = run(rule, dropping, 15)
  decays, clipped = {'conv1': 0.05, 'fc2': 0.5}, []
  for layer, name in LEAVES:
    w = random_tree(1000)[layer][name].astype(np.float64)
    v = np.zeros_like(w)
    for step in range(15):
      rate, gradient = dropping(step)[layer][name], random_tree(step)[layer][name]
      if trust:
        most = 0.1 * trust * np.linalg.norm(w) / np.linalg.norm(gradient)
        clipped.append(most < rate)
        rate = min(rate, most)
      wc = decays[layer] if name == 'kernel' else 0
      v = 0.9 * v - wc * rate * w - rate * gradient
      w = w + v
      np.testing.assert_allclose(found[step][layer][name], w, rtol=1e-5, atol=1e-6)
  assert not trust or set(clipped) == {True, False}


@pytest.mark.parametrize('rate, moved', [(0.5, 0.5), (32.0, 1.0), (0.0, 0.0)])
def test_lars_of_a_parameter_that_is_zero(rate, moved):
  """NVIDIA's `GetLocalRate` starts from 1 and leaves it where a norm is 0; then min(rate, it)."""
  rule = larc(0.9, {'bias': 0.0}, 0.001)
  zeros, ones = {'bias': jnp.zeros(3)}, {'bias': jnp.ones(3)}
  updates, _ = rule.update(ones, rule.init(zeros), zeros, rates={'bias': rate})
  np.testing.assert_allclose(updates['bias'], -moved)
  updates, _ = rule.update(zeros, rule.init(ones), ones, rates={'bias': rate})
  np.testing.assert_array_equal(updates['bias'], 0)


def optax_history(transformation, steps):
  params = random_tree(1000)
  state = transformation.init(params)
  update = jax.jit(transformation.update)
  history = []
  for step in range(steps):
    updates, state = update(random_tree(step), state, params)
    params = optax.apply_updates(params, updates)
    history.append(jax.tree.map(np.asarray, params))
  return history


def test_2012_rule_is_optaxs_chain_and_not_its_sgd():
  schedule = optax.piecewise_constant_schedule(0.1, {5: 0.1, 10: 0.1})
  found = run(
    krizhevsky_momentum(0.9, filled(0.05)), lambda step: filled(0.1 * 0.1 ** (step // 5)), 15
  )
  chain = optax.chain(
    optax.add_decayed_weights(0.05), optax.scale_by_learning_rate(schedule), optax.trace(0.9)
  )
  assert_same(found, optax_history(chain, 15))
  sgd = optax_history(
    optax.chain(optax.add_decayed_weights(0.05), optax.sgd(schedule, momentum=0.9)), 15
  )
  assert_same(found[:5], sgd[:5])  # the same until the rate drops
  with pytest.raises(AssertionError):
    assert_same(found[5:6], sgd[5:6], rtol=1e-2)


def test_a_frozen_layer_is_skipped_and_goes_on_with_its_old_velocity():
  frozen = range(4, 8)

  def rates(step):
    tree = filled(0.1)
    if step in frozen:
      tree['conv1'] = {'kernel': 0.0, 'bias': 0.0}
    return tree

  optimizer = krizhevsky_momentum(0.9, filled(0.5))
  found = run(optimizer, rates, 12)
  for step in frozen:
    np.testing.assert_equal(found[step]['conv1'], found[3]['conv1'])
    assert not np.array_equal(found[step]['fc2']['kernel'], found[step - 1]['fc2']['kernel'])
  # As if the steps of the pause had not been: the velocity has kept its size.
  seen = [step for step in range(12) if step not in frozen]
  without = run(optimizer, lambda step: filled(0.1), 8, lambda step: random_tree(seen[step]))
  for step, expected in zip(seen, without, strict=True):
    np.testing.assert_equal(found[step]['conv1'], expected['conv1'])


def test_what_decays():
  params = {**SHAPES, 'bn1': {'scale': (4,), 'bias': (4,)}}
  assert decays_of(params, 0.0005, {'fc2': 3.0}, False) == {
    'conv1': {'kernel': 0.0005, 'bias': 0.0},
    'fc2': {'kernel': 3.0, 'bias': 0.0},
    'bn1': {'scale': 0.0, 'bias': 0.0},
  }
  assert decays_of(params, 0.0005, {'fc2': 3.0}, True) == {
    'conv1': {'kernel': 0.0005, 'bias': 0.0005},
    'fc2': {'kernel': 3.0, 'bias': 3.0},
    'bn1': {'scale': 0.0005, 'bias': 0.0005},
  }


# Adam.


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_adam_agrees_with_torch_and_optax(decay):
  torch = pytest.importorskip('torch')
  found = run(adam(0.8, 0.99, 1e-6, filled(decay)), lambda step: filled(0.01), 10)
  peer = optax.adamw(0.01, b1=0.8, b2=0.99, eps=1e-6, weight_decay=decay)
  assert_same(found, optax_history(peer, 10))

  start = random_tree(1000)
  tensors = {
    leaf: torch.tensor(start[leaf[0]][leaf[1]], dtype=torch.float64, requires_grad=True)
    for leaf in LEAVES
  }
  peer = torch.optim.AdamW(
    tensors.values(), lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=decay
  )
  for step in range(10):
    for layer, name in LEAVES:
      tensors[layer, name].grad = torch.tensor(random_tree(step)[layer][name], dtype=torch.float64)
    peer.step()
    for layer, name in LEAVES:
      np.testing.assert_allclose(
        found[step][layer][name], tensors[layer, name].detach(), rtol=1e-4, atol=1e-6
      )


def test_adam_takes_a_rate_for_every_parameter():
  rates = filled(0.01)
  rates['fc2']['kernel'], rates['conv1']['bias'] = 0.0, 0.02
  one = run(adam(0.9, 0.999, 1e-8, filled(0.0)), lambda step: rates, 1)[0]
  start = random_tree(1000)
  for layer, name in LEAVES:  # Adam's first step is the rate, by the gradient's sign
    expected = start[layer][name] - rates[layer][name] * np.sign(random_tree(0)[layer][name])
    np.testing.assert_allclose(one[layer][name], expected, atol=1e-6)


# Schedules.


def values(curve, steps):
  return [float(curve(jnp.int32(step))) for step in steps]


def curve_of(kind, total_steps, **fields):
  schedule = configs.default().optimizer.schedule
  schedule.update({'kind': kind, **fields})
  return schedules.make_curve(schedule, Calendar(1, 1, total_steps))


def test_linear_warmup():
  curve = schedules.with_warmup(curve_of('step', 8, milestones=(6.0,), factor=0.1), 4)
  np.testing.assert_allclose(values(curve, range(8)), [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1])


def test_cosine_agrees_with_optax():
  curve, peer = curve_of('cosine', 200), optax.cosine_decay_schedule(1.0, 200)
  at = [0, 1, 50, 100, 150, 199, 200, 300]
  np.testing.assert_allclose(values(curve, at), [float(peer(step)) for step in at], atol=1e-6)


def test_plateau_divides_after_its_patience():
  rule = schedules.Plateau(factor=0.1, patience=2)
  state, scales = rule.initial(), []
  #                   new   new  wait drop  wait  new  wait drop  tie   NaN drops
  for error in (0.9, 0.5, 0.6, 0.6, 0.55, 0.4, 0.5, 0.5, 0.4, math.nan):
    state = rule.after(state, error)
    scales.append(float(state['scale']))
  np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)
  assert float(state['best']) == pytest.approx(0.4)
  kinds = {name: (np.asarray(x).dtype, np.shape(x)) for name, x in state.items()}
  assert kinds == {name: (x.dtype, x.shape) for name, x in rule.initial().items()}


# Whole recipes.

PARAMS = {layer: {'kernel': (), 'bias': ()} for layer in ('conv1', 'conv2', 'fc8')}


def imagenet_rates(variant, **changes):
  """{(layer, parameter): rate} as a function of the step, and the calendar."""
  config = get_config(f'imagenet:{variant}')
  config.optimizer.update(changes)
  calendar = Calendar(1_281_167, config.batch_size, config.epochs)
  rates = schedules.make_rates(config, calendar)

  def at(step, scale=1.0):
    tree = rates.per_parameter(PARAMS, jnp.int32(step), jnp.float32(scale))
    return {(layer, name): float(tree[layer][name]) for layer in tree for name in tree[layer]}

  return at, calendar


def test_rates_of_the_2012_run():
  """CHM layer-params-145.cfg: the epochs of its hand-made schedule, exactly at their steps."""
  at, calendar = imagenet_rates('')
  assert calendar.total_steps == math.ceil(91 * 1_281_167 / 128)
  table = [  # from epoch, conv1, other kernels
    (0, 1e-2, 1e-2),
    (25, 1e-3, 1e-3),
    (51, 1e-4, 1e-4),
    (67, 1e-5, 1e-4),
    (72, 0, 1e-4),
    (79, 0, 1e-5),
    (91, None, None),
  ]
  for (epoch, conv1, others), (end, *_) in zip(table, table[1:], strict=False):
    first, last = (math.ceil(e * 1_281_167 / 128) for e in (epoch, end))
    for step in (first, last - 1):
      rates = at(step)
      assert rates['conv1', 'kernel'] == pytest.approx(conv1, rel=1e-5)
      assert rates['conv1', 'bias'] == pytest.approx(0.02 if conv1 else 0, rel=1e-5)
      for layer in ('conv2', 'fc8'):
        assert rates[layer, 'kernel'] == pytest.approx(others, rel=1e-5)
        assert rates[layer, 'bias'] == pytest.approx(0.02, rel=1e-5)


def test_rates_of_the_automatic_schedule():
  """#170: dexp[250, 4] for kernels, dexp[10, 2] for biases, conv1 frozen at epoch 74."""
  at, calendar = imagenet_rates('auto')
  total = calendar.total_steps
  for quarter, rate in enumerate((0.01, 0.001587, 0.000252, 0.00004)):
    step = math.ceil(total * quarter / 4)
    for s in (step, math.ceil(total * (quarter + 1) / 4) - 1):
      assert at(s)['conv2', 'kernel'] == pytest.approx(rate, rel=1e-3)
      assert at(s)['conv2', 'bias'] == pytest.approx(0.02 if quarter < 2 else 0.002, rel=1e-5)
  frozen = calendar.step_of(74)
  assert at(frozen - 1)['conv1', 'kernel'] == pytest.approx(0.00004, rel=1e-2)
  assert at(frozen)['conv1', 'kernel'] == at(frozen)['conv1', 'bias'] == 0


@pytest.mark.parametrize(
  'variant, base, rise', [('bn_8k', 10, 600), ('bn_16k', 24, 400), ('bn_32k', 32, 400)]
)
def test_rates_of_large_batches(variant, base, rise):
  """NVIDIA/caffe models/alexnet_bn/solver_8K.prototxt and its fellows."""
  at, calendar = imagenet_rates(variant)
  for step in (0, 1, rise // 2, rise - 1):
    expected = 1 + (base - 1) * (step / rise) ** 2
    assert at(step)['conv2', 'kernel'] == pytest.approx(expected, rel=1e-5)
    assert at(step)['conv2', 'bias'] == pytest.approx(expected, rel=1e-5)
  for step in (rise, calendar.total_steps // 2, calendar.total_steps - 1):
    expected = base * (1 - step / calendar.total_steps) ** 2
    assert at(step)['conv2', 'kernel'] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('variant', ['13pct', '11pct'])
def test_local_nets_lower_the_rate_of_kernels_alone(variant):
  """layer-params-conv-local-12pct.cfg, the last stage: epsW=0.00001, epsB=0.002.

  Not so layer-params-18pct.cfg: "Reduce all learning rates".
  """
  config = get_config(f'cifar10:{variant}')
  rates = schedules.make_rates(config, Calendar(1, 1, 520))
  for step, kernel in ((0, 1e-3), (499, 1e-3), (500, 1e-4), (509, 1e-4), (510, 1e-5), (519, 1e-5)):
    found = rates.per_parameter(PARAMS, jnp.int32(step), 1.0)['conv1']
    assert float(found['kernel']) == pytest.approx(kernel, rel=1e-5)
    assert float(found['bias']) == pytest.approx(0.002, rel=1e-5)
  rates = schedules.make_rates(get_config('cifar10:18pct'), Calendar(1, 1, 140))
  found = rates.per_parameter(PARAMS, jnp.int32(130), 1.0)['conv1']
  assert [*map(float, found.values())] == pytest.approx([1e-5, 2e-5], rel=1e-5)


def test_factors_act_on_kernel_and_bias_unless_one_is_named():
  config = get_config('imagenet:paper')
  config.optimizer.bias_lr_multiplier = 2.0
  config.optimizer.layer_lr_factors = {
    'conv1': ((0.0, 0.5), (9.0, 0.0)),
    'conv1/kernel': ((0.0, 0.1),),
    'conv2/bias': ((0.0, 0.0),),
    'fc8': ((0.0, 10.0),),
  }
  configs.validate(config)
  rates = schedules.make_rates(config, Calendar(1, 1, 90))

  def of(layer, step):
    found = rates.per_parameter(PARAMS, jnp.int32(step), 1.0)[layer]
    return [float(found['kernel']), float(found['bias'])]

  assert of('conv1', 0) == pytest.approx([0.0005, 0.01])
  assert of('conv1', 9) == [0, 0]
  assert of('conv2', 0) == pytest.approx([0.01, 0])
  # Caffe's finetune_flickr_style: lr_mult 10 and 20 for fc8_flickr, 1 and 2 below.
  assert of('fc8', 0) == pytest.approx([0.1, 0.2])


def test_rates_of_the_papers_text():
  at, calendar = imagenet_rates('paper', base_batch_size=64)
  np.testing.assert_allclose(list(at(0).values()), 0.02, rtol=1e-6)
  at, calendar = imagenet_rates('paper')
  # "We used an equal learning rate for all layers".
  np.testing.assert_allclose(list(at(0).values()), 0.01, rtol=1e-6)
  levels = sorted({round(math.log10(at(calendar.step_of(e))['fc8', 'bias'])) for e in range(90)})
  assert levels == [-5, -4, -3, -2]  # "reduced three times"


def test_bias_schedule_follows_the_kernels_unless_told_otherwise():
  at, calendar = imagenet_rates('paper', bias_lr_multiplier=3.0, warmup_epochs=2.0)
  for epoch in (0.5, 10, 30, 60, 80):
    rates = at(calendar.step_of(epoch))
    assert rates['conv2', 'bias'] == pytest.approx(3 * rates['conv2', 'kernel'], rel=1e-5)
  assert at(calendar.step_of(1))['conv2', 'kernel'] == pytest.approx(0.005, rel=1e-3)


def test_a_plateau_scales_kernels_and_the_biases_that_follow_them():
  at, _ = imagenet_rates('', schedule={'kind': 'plateau'}, bias_schedule={'kind': 'same'})
  rates = at(0, scale=0.1)
  assert rates['conv2', 'kernel'] == pytest.approx(0.001, rel=1e-5)
  assert rates['conv2', 'bias'] == pytest.approx(0.002, rel=1e-5)
  at, _ = imagenet_rates('', schedule={'kind': 'plateau'})  # as in 2012, by hand
  rates = at(0, scale=0.1)
  assert rates['conv2', 'kernel'] == pytest.approx(0.001, rel=1e-5)
  assert rates['conv2', 'bias'] == pytest.approx(0.02, rel=1e-5)
