"""The tables against published counts, shapes, orders and initial values."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import run

from alexnet_jax.model import layers, nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.train.step import init_variables


class Published(NamedTuple):
  """What the sources of a net say; None where they do not."""

  crop: int  # side of the views for which the net was made
  parameters: int | None
  macs: int | None
  stds: tuple  # of the initial kernels of the layers with weights
  biases: tuple[float, ...]


SIZE = (60_965_224, 724_406_816)
ZOO_MACS = 54**2 * 34_848 + 26**2 * 307_200 + 12**2 * (884_736 + 663_552 + 442_368) + 58_621_952
ZOO_SIZE = (SIZE[0], ZOO_MACS)
BN_SIZE = (SIZE[0] + 2 * (96 + 256 + 384 + 384 + 256), SIZE[1])  # a scale and a bias for each map
# CHM layer-params-145.cfg; the fillers of Caffe's prototxts.
CHM_STDS, CHM_BIASES = (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), (0, 1, 0, 1, 1, 1, 1, 0)
CONV6_STDS, CONV6_BIASES = (*CHM_STDS[:5], 0.03, *CHM_STDS[5:]), (*CHM_BIASES[:5], 1, 1, 1, 0)
CAFFE_STDS, CAFFE_BIASES = (0.01,) * 5 + (0.005, 0.005, 0.01), (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0)
LOCAL_STDS = (0.0001, 0.01, 0.04, 0.04, 0.01)
PUBLISHED = {
  'krizhevsky2012': Published(224, *SIZE, CHM_STDS, CHM_BIASES),
  'paper': Published(224, *SIZE, (0.01,) * 8, CHM_BIASES),
  'caffe': Published(227, *SIZE, CAFFE_STDS, CAFFE_BIASES),
  'caffenet': Published(227, *SIZE, CAFFE_STDS, CHM_BIASES),
  # One multiplication for each weight and place: 54, 26 and 12 a side.
  'caffe_onnx': Published(224, *ZOO_SIZE, CAFFE_STDS, CAFFE_BIASES),
  'caffenet_onnx': Published(224, *ZOO_SIZE, CAFFE_STDS, CHM_BIASES),
  'owt': Published(224, 61_100_840, 714_188_480, ('torch',) * 8, (0,) * 8),
  'one_tower': Published(224, 59_798_312, 391_514_384, CHM_STDS, CHM_BIASES),
  'conv6': Published(224, 61_555_304, 745_640_480, CONV6_STDS, CONV6_BIASES),
  'bn': Published(227, *BN_SIZE, CAFFE_STDS, (0,) * 5 + (0.1, 0.1, 0)),
  'bn_after_pool': Published(227, *SIZE, CAFFE_STDS, (0.01,) * 5 + (0.1, 0.1, 0.01)),
  'cifar_80sec': Published(32, 145_578, None, (0.0001, 0.01, 0.01, 0.1, 0.1), (0,) * 5),
  'cifar_19pct': Published(32, 89_578, None, (0.0001, 0.01, 0.01, 0.01), (0,) * 4),
  'cifar_18pct': Published(32, 89_578, None, (0.0001, 0.01, 0.01, 0.01), (0,) * 4),
  'cifar_13pct': Published(24, 1_116_490, None, LOCAL_STDS, (0,) * 5),
  'cifar_11pct': Published(24, 2_112_970, None, LOCAL_STDS, (0,) * 5),
  'cifar_bn': Published(32, None, None, ('he',) * 9, (0,) * 9),
  'digits': Published(28, None, None, (0.03, *('he',) * 4), (0,) * 5),
}


def image_of(net: str) -> layers.Shape:
  return PUBLISHED[net].crop, PUBLISHED[net].crop, 3


def table_of(net: str) -> layers.Table:
  return nets.NETS[net](10 if net.startswith(('cifar', 'digits')) else 1000)


def weighted(table):
  return [row for row in table if isinstance(row, (layers.Conv, layers.Dense))]


def sides(table, shape):
  """{layer: side of its square output} of the convolutions and pools."""
  return {row.name: output[0] for row, _, output in layers.walk(table, shape) if len(output) == 3}


# Counts.


def test_every_layer_of_the_2012_net_has_the_published_counts():
  walked = layers.walk(nets.krizhevsky2012(), (224, 224, 3))
  found = {row.name: (row.parameter_count(inputs), row.macs(inputs)) for row, inputs, _ in walked}
  assert {name: counts for name, counts in found.items() if any(counts)} == {
    'conv1': (34_944, 105_415_200),
    'conv2': (307_456, 223_948_800),
    'conv3': (885_120, 149_520_384),
    'conv4': (663_936, 112_140_288),
    'conv5': (442_624, 74_760_192),
    'fc6': (37_752_832, 37_748_736),
    'fc7': (16_781_312, 16_777_216),
    'fc8': (4_097_000, 4_096_000),
  }


@pytest.mark.parametrize('net', nets.NETS)
def test_totals(net):
  table, shape = table_of(net), image_of(net)
  assert PUBLISHED[net].parameters in (None, layers.count_parameters(table, shape))
  assert PUBLISHED[net].macs in (None, layers.count_macs(table, shape))


@pytest.mark.parametrize('width, part', [(0.5, 2), (0.25, 4)])
def test_width_scales_all_layers_but_the_last(width, part):
  table = nets.make_table('krizhevsky2012', 10, 224, width)
  c1, c2, c3, c5, hidden = (n // part for n in (96, 256, 384, 256, 4096))
  convolutions = [(11, 3, c1), (5, c1 // 2, c2), (3, c2, c3), (3, c3 // 2, c3), (3, c3 // 2, c5)]
  dense = [(36 * c5, hidden), (hidden, hidden), (hidden, 10)]
  parameters = sum((size * size * inputs + 1) * maps for size, inputs, maps in convolutions)
  parameters += sum((inputs + 1) * units for inputs, units in dense)
  assert layers.count_parameters(table, (224, 224, 3)) == parameters
  # Fan-in, shrunk in all layers but the first, times the variance of the weights stays the same.
  ratios = [
    row.init / full.init
    for row, full in zip(weighted(table), weighted(table_of('krizhevsky2012')), strict=True)
  ]
  assert ratios == pytest.approx([1, *[math.sqrt(part)] * 7])
  assert nets.make_table('krizhevsky2012', 10, 224) == nets.krizhevsky2012(10)
  edited = nets.make_table('krizhevsky2012', 10, 224, width, ['one_tower'])
  assert [row.features for row in weighted(edited)[:2]] == [c1 // 2, c2 // 2]


def test_a_width_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match='conv2: 256 features are not divisible by 24'):
    layers.narrow(nets.krizhevsky2012(), 24)
  with pytest.raises(ValueError, match='norm1: 3 channels are not divisible by 2'):
    layers.count_macs(layers.narrow(nets.krizhevsky2012(), 32), (224, 224, 3))


def test_the_2012_net_has_650_thousand_neurons():
  units = {
    row.name: math.prod(output)
    for row, _, output in layers.walk(nets.krizhevsky2012(), (224, 224, 3))
    if isinstance(row, (layers.Conv, layers.Dense))
  }
  # Figure 2 of the paper, but for its 253,440 of the first layer, which is not 55 * 55 * 96.
  assert [units[f'conv{i}'] for i in range(2, 6)] == [186_624, 64_896, 64_896, 43_264]
  assert sum(units.values()) == 659_272


# Geometry.


@pytest.mark.parametrize('net', [net for net in nets.NETS if PUBLISHED[net].macs])
def test_sides_of_the_maps(net):
  found = sides(table_of(net), image_of(net))
  wanted = [54, 26, 12, 6] if net.endswith('_onnx') else [55, 27, 13, 6]
  assert [found[name] for name in ('conv1', 'pool1', 'pool2', 'pool5')] == wanted


@pytest.mark.parametrize(
  'net, expected',
  [
    ('cifar_18pct', {'pool1': 16, 'pool2': 8, 'pool3': 4}),
    ('cifar_11pct', {'pool1': 12, 'pool2': 6, 'local4': 6}),
    ('cifar_bn', {'pool1': 16, 'pool2': 8, 'pool3': 4, 'pool4': 2}),
  ],
)
def test_sides_of_the_maps_of_small_nets(net, expected):
  found = sides(table_of(net), image_of(net))
  assert {name: found[name] for name in expected} == expected


def test_convolutions_round_up_or_down_as_asked():
  for size, kernel, stride, padding in itertools.product(
    range(11, 40), (3, 5, 11), (1, 2, 3, 4), (0, 1, 2)
  ):
    row = layers.Conv('c', 8, kernel, stride=stride, padding=padding)
    up = dataclasses.replace(row, ceil=True)
    free = 2 * padding + size - kernel
    assert row.output_shape((size, size + 1, 3)) == (
      1 + free // stride,
      1 + (free + 1) // stride,
      8,
    )
    assert up.output_shape((size, size, 3))[0] == 1 + math.ceil(free / stride)
    before, after = up.edge_padding(size)
    assert before == padding  # what is missing is added at the bottom and right
    assert (before + size + after - kernel) % stride == 0
    assert 0 <= after - padding < stride


def test_pools_round_up_and_each_window_holds_a_pixel():
  for size, (window, stride) in itertools.product(range(3, 40), ((3, 2), (2, 2), (3, 3), (3, 1))):
    side = layers.MaxPool('p', window, stride).output_shape((size, size, 4))[0]
    starts = [stride * i for i in range(side)]
    assert starts[-1] < size <= starts[-1] + window
    assert side == 1 or starts[-2] + window < size


@pytest.mark.parametrize('net', nets.NETS)
def test_the_module_makes_the_shapes_that_its_table_says(net):
  table, shape = table_of(net), image_of(net)

  def run(image):
    keys = jax.random.split(jax.random.key(1), 2)
    variables = AlexNet(table).init(jax.random.key(0), image)
    return variables, AlexNet(table).apply(
      variables, image, train=True, keys=keys, mutable=['intermediates', 'batch_stats']
    )

  variables, (logits, state) = jax.eval_shape(run, jnp.zeros((2, *shape)))
  outputs = {name: x.shape[1:] for name, x in state['intermediates']['outputs'].items()}
  assert outputs == {row.name: output for row, _, output in layers.walk(table, shape)}
  assert jax.tree.map(lambda x: x.shape, variables['params']) == {
    row.name: row.parameters(inputs)
    for row, inputs, _ in layers.walk(table, shape)
    if row.parameters(inputs)
  }
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert logits.shape == (2, table[-1].features)


# Order of the layers, "|" before each weighted one, written down from the sources and not from the
# tables.  lrn is across maps, rnorm within a map.

HIDDEN = ' | fc relu drop | fc relu drop | fc'
# CHM layers-145.cfg: neuron=relu at pool1, conv2-4, pool3, fc2048*; none at conv1, conv5.
CHM_145 = 'conv lrn max relu | conv relu lrn rnorm max | conv relu | conv relu | conv max relu'
CAFFE_3_TO_5 = ' | conv relu | conv relu | conv relu max'
ORDER = {
  'krizhevsky2012': CHM_145 + HIDDEN,
  # CHM layers-145-half.cfg.
  'one_tower': CHM_145 + HIDDEN,
  # CHM layers-146-2012-2011.cfg: conv6 on pool3, no pool after it.
  'conv6': CHM_145 + ' | conv relu' + HIDDEN,
  # Paper sections 3.5 and 4.2.
  'paper': 'conv relu lrn max | conv relu lrn max' + CAFFE_3_TO_5 + HIDDEN,
  # BVLC/caffe models/bvlc_alexnet/train_val.prototxt.
  'caffe': 'conv relu lrn max | conv relu lrn max' + CAFFE_3_TO_5 + HIDDEN,
  # BVLC/caffe models/bvlc_reference_caffenet/train_val.prototxt.
  'caffenet': 'conv relu max lrn | conv relu max lrn' + CAFFE_3_TO_5 + HIDDEN,
  # onnx/models bvlcalexnet and caffenet.
  'caffe_onnx': 'conv relu lrn max | conv relu lrn max' + CAFFE_3_TO_5 + HIDDEN,
  'caffenet_onnx': 'conv relu max lrn | conv relu max lrn' + CAFFE_3_TO_5 + HIDDEN,
  # torchvision/models/alexnet.py: dropout on the inputs of its dense layers.
  'owt': 'conv relu max | conv relu max' + CAFFE_3_TO_5 + ' | drop fc relu drop | fc relu | fc',
  # NVIDIA/caffe models/alexnet_bn/train_val.prototxt and train_val2.prototxt.
  'bn': 'conv norm relu max | conv norm relu max | conv norm relu | conv norm relu'
  ' | conv norm relu max' + HIDDEN,
  'bn_after_pool': 'conv relu max | norm conv relu max | norm conv relu | norm conv relu'
  ' | norm conv relu max' + HIDDEN,
  # cuda-convnet example-layers/layers-80sec.cfg: "neuron=relu" at fc64.  conv1 has its ReLU before
  # the max pool there, which is the same function; so have the next two.
  'cifar_80sec': 'conv max relu | conv relu avg | conv relu avg | fc relu | fc',
  # layers-19pct.cfg.
  'cifar_19pct': 'conv max relu | conv relu avg | conv relu avg | fc',
  # layers-18pct.cfg.
  'cifar_18pct': 'conv max relu rnorm | conv relu avg rnorm | conv relu avg | fc',
  # layers-conv-local-13pct.cfg.
  'cifar_13pct': 'conv relu max | conv relu max | local relu | local relu | fc',
  # cuda-convnet2 layers-cifar10-11pct.cfg.
  'cifar_11pct': 'conv relu max lrn | conv relu lrn max | local relu | local relu | fc',
  # The published table of layers of the 14-layer net.
  'cifar_bn': 4 * 'conv relu max norm | ' + 4 * 'fc relu drop norm | ' + 'fc',
  # Ours.
  'digits': 'conv relu lrn max | conv relu lrn max | conv relu max | fc relu drop | fc',
}


@pytest.mark.parametrize('net', nets.NETS)
def test_order_of_layers(net):
  words = {
    layers.Conv: 'conv',
    layers.Local: 'local',
    layers.Dense: 'fc',
    layers.Relu: 'relu',
    layers.MaxPool: 'max',
    layers.AvgPool: 'avg',
    layers.ResponseNorm: 'lrn',
    layers.SpatialNorm: 'rnorm',
    layers.BatchNorm: 'norm',
    layers.Dropout: 'drop',
  }
  assert [words[type(row)] for row in table_of(net)] == ORDER[net].replace('|', '').split()


@pytest.mark.parametrize('net', nets.NETS)
def test_dropout_keeps_half_and_is_inverted_where_the_source_is_not_cuda_convnet(net):
  rows = [row for row in table_of(net) if isinstance(row, layers.Dropout)]
  original = net in ('krizhevsky2012', 'one_tower', 'conv6', 'paper', 'digits')
  assert {row.inverted for row in rows} <= {not original}
  assert [row.keep for row in rows] == (
    [0.9, 0.8, 0.7, 0.6] if net == 'cifar_bn' else [0.5] * len(rows)
  )


@pytest.mark.parametrize(
  'net, size, alpha, beta, k, groups',
  [
    ('krizhevsky2012', 5, 2e-5, 0.75, 2, 2),
    ('conv6', 5, 2e-5, 0.75, 2, 2),
    ('one_tower', 5, 2e-5, 0.75, 2, 1),
    ('paper', 5, 1e-4, 0.75, 2, 1),
    ('caffe', 5, 2e-5, 0.75, 1, 1),
    ('caffenet', 5, 2e-5, 0.75, 1, 1),
    ('cifar_11pct', 9, 0.001 / 9, 0.75, 1, 1),
  ],
)
def test_constants_of_response_normalization(net, size, alpha, beta, k, groups):
  norms = [row for row in table_of(net) if isinstance(row, layers.ResponseNorm)]
  assert [dataclasses.astuple(row) for row in norms] == [
    (name, size, alpha, beta, k, groups) for name in ('norm1', 'norm2')
  ]


@pytest.mark.parametrize(
  'net, names, size, scale',
  [
    ('krizhevsky2012', ['spatial_norm2'], 5, 0.001),
    ('cifar_18pct', ['spatial_norm1', 'spatial_norm2'], 3, 5e-5),
  ],
)
def test_constants_of_spatial_normalization(net, names, size, scale):
  norms = tuple(row for row in table_of(net) if isinstance(row, layers.SpatialNorm))
  alpha = pytest.approx(scale / size**2)
  assert [dataclasses.astuple(row) for row in norms] == [
    (name, size, alpha, 0.75, 1) for name in names
  ]


# Initial values.


def assert_normal(kernel, std):
  """The kernel is drawn from N(0, std^2), within four standard errors."""
  kernel = np.asarray(kernel, np.float64).ravel() / std
  n = kernel.size
  assert abs(kernel.mean()) < 4 / math.sqrt(n)
  assert abs(kernel.std() - 1) < 4 / math.sqrt(2 * n)
  assert abs(np.mean(np.abs(kernel) < 1) - 0.682689) < 4 * math.sqrt(0.682689 * 0.317311 / n)


def test_initial_values_of_the_2012_net():
  # Fewer dense units and a small view are quicker to draw and change no distribution.
  table = tuple(
    dataclasses.replace(row, features=1000) if isinstance(row, layers.Dense) else row
    for row in nets.krizhevsky2012()
  )
  params = init_variables(AlexNet(table), 0, 67)['params']
  for row, std, bias in zip(weighted(table), CHM_STDS, CHM_BIASES, strict=True):
    assert_normal(params[row.name]['kernel'], std)
    np.testing.assert_array_equal(params[row.name]['bias'], np.float32(bias), err_msg=row.name)


@pytest.mark.parametrize('net', nets.NETS)
def test_initial_values_in_the_tables(net):
  rows = weighted(table_of(net))
  assert tuple(row.init for row in rows) == PUBLISHED[net].stds
  assert tuple(row.bias for row in rows) == PUBLISHED[net].biases


def test_torch_initialization():
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  table = (
    layers.Conv('first', 32, 1),
    layers.Conv('conv', 64, 5, groups=2, init='torch'),
    layers.Dense('fc', 50, init='torch'),
  )
  params = init_variables(AlexNet(table), 0, 8)['params']
  peers = {'conv': torch.nn.Conv2d(32, 64, 5, groups=2), 'fc': torch.nn.Linear(64 * 16, 50)}
  for layer, peer in peers.items():
    for name, theirs in {'kernel': peer.weight, 'bias': peer.bias}.items():
      ours = np.asarray(params[layer][name])
      bound = 1 / math.sqrt({'conv': 16 * 25, 'fc': 64 * 16}[layer])
      assert np.abs(ours).max() <= bound and theirs.abs().max() <= bound
      assert np.abs(ours).max() == pytest.approx(bound, rel=0.1)
      assert ours.std() == pytest.approx(theirs.std().item(), rel=0.3 if name == 'bias' else 0.02)


def test_he_initialization():
  table = (
    layers.Conv('first', 32, 1),
    layers.Conv('conv', 64, 5, groups=2, init='he'),
    layers.Local('local', 32, 3, init='he'),
    layers.Dense('fc', 100, init='he'),
  )
  params = init_variables(AlexNet(table), 0, 8)['params']
  for layer, fan_in in {'conv': 16 * 25, 'local': 64 * 9, 'fc': 2 * 2 * 32}.items():
    assert_normal(params[layer]['kernel'], math.sqrt(2 / fan_in))
    assert not params[layer]['bias'].any()


def test_initial_values_depend_on_the_seed_and_the_layer_alone():
  def kernels(seed, *between):
    table = (layers.Dense('a', 192), *between, layers.Dense('b', 192))
    params = init_variables(AlexNet(table), seed, 8)['params']
    return {name: np.asarray(leaves['kernel']) for name, leaves in params.items()}

  first = kernels(0)
  np.testing.assert_equal(kernels(0, layers.Relu('relu'), layers.Dropout('drop')), first)
  assert not np.array_equal(first['a'], first['b'])
  assert not np.array_equal(kernels(1)['a'], first['a'])


# walk, summarize.


@pytest.mark.parametrize(
  'table, shape, message',
  [
    (nets.krizhevsky2012(), (16, 16, 3), 'pool2'),
    (nets.cifar_18pct(), (2, 2, 3), 'pool2'),
    ((layers.Conv('odd', 7, 3, groups=2),), (9, 9, 4), 'odd.*groups=2'),
    ((layers.Conv('odd', 8, 3, groups=2),), (9, 9, 3), 'odd.*groups=2'),
    ((layers.ResponseNorm('towers', groups=2),), (9, 9, 3), 'towers'),
    ((layers.Dense('fc', 8), layers.Conv('late', 8, 3)), (9, 9, 3), 'late'),
    ((layers.Dense('fc', 8), layers.MaxPool('late')), (9, 9, 3), 'late'),
    ((layers.Dense('fc', 8), layers.SpatialNorm('late')), (9, 9, 3), 'late'),
  ],
)
def test_a_layer_that_does_not_fit_is_named(table, shape, message):
  with pytest.raises(ValueError, match=message):
    list(layers.walk(table, shape))


def test_summarize_prints_the_net_with_totals():
  done = run('alexnet_jax.summarize', '--config=configs/imagenet.py:conv6')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[-1].split() == ['total', '61,555,304', '745,640,480']
  conv2 = next(line for line in lines if line.startswith('conv2'))
  assert conv2.split() == ['conv2', 'Conv', '5x5', '1', '2', '27x27x256', '307,456', '223,948,800']
  done = run('alexnet_jax.summarize', '--config=imagenette', '--config.model.width=0.25')
  assert done.stdout.startswith('imagenette-width0.25: net krizhevsky2012, width 1/4, input 224x')
