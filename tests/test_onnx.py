"""ONNX as onnxruntime and the onnx package see it: what we write, and what others have written."""

import dataclasses
import json
import re
import warnings

import jax
import numpy as np
import pytest
from helpers import weight_files as files
from test_convert import pretrained
from test_nets import PUBLISHED

from alexnet_jax.errors import UserError
from alexnet_jax.model import nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.weights.load import load
from alexnet_jax.weights.save import save

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
from helpers import onnx_files  # noqa: E402

CENTER = np.array([0.5, 0.5, 0])
FULL = [net for net in nets.NETS if not net.startswith(('cifar', 'digits'))]


def session(path):
  return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


def smooth_images(side, count):
  """Random images, smooth enough that norms and pools have something to do."""
  coarse = np.random.default_rng(5).uniform(0, 255, (count, 12, 12, 3))
  return np.uint8(np.kron(coarse, np.ones((1, 22, 22, 1)))[:, :side, :side])


def assert_runs_alike(weights, folder, preprocessing):
  """onnxruntime computes of a file what we compute, for two numbers of images."""
  path = folder / 'net.onnx'
  save(weights, path, preprocessing)
  onnx.checker.check_model(onnx.load(path), full_check=True)
  images = smooth_images(weights.image_size, 3)
  views = np.asarray(weights.preprocessing.test_view(images, CENTER))
  wanted = np.asarray(jax.jit(AlexNet(weights.table).apply)(weights.variables, views))
  largest = np.abs(wanted).max()
  assert np.ptp(wanted, axis=0).max() > 0.1 * largest, 'all views look alike'
  given = images if preprocessing else views.transpose(0, 3, 1, 2)
  program = session(path)
  for count in (3, 1):
    logits, probabilities = program.run(['logits', 'probabilities'], {'images': given[:count]})
    assert np.abs(logits - wanted[:count]).max() <= 1e-5 * largest
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('preprocessing', [False, True], ids=['', 'preprocessing'])
@pytest.mark.parametrize('net', nets.NETS)
def test_every_net(tmp_path, net, preprocessing):
  with files.narrow_nets(FULL):
    weights = pretrained(net, PUBLISHED[net].crop)
    assert_runs_alike(weights, tmp_path, preprocessing)


def test_ablations(tmp_path):
  """A net whose dense layers are grouped convolutions, with tanh and no dropout."""
  names = ('no_cross_tower', 'tanh', 'no_dropout')
  with files.narrow_nets(FULL):
    rows = pretrained('krizhevsky2012', 224, ablations=names).table
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(nets.NETS, 'edited', lambda classes: rows)
      assert_runs_alike(pretrained('edited', 224), tmp_path, False)


@pytest.mark.slow
def test_full_size(tmp_path):
  assert_runs_alike(pretrained('krizhevsky2012', 224), tmp_path, True)


def test_one_color_for_all_pixels(tmp_path):
  """A mean of three numbers and an image that is its own view."""
  weights = pretrained('digits', 28)
  ours = weights.preprocessing
  ours = dataclasses.replace(ours, mean=ours.mean[0, 0], resize_to=0)
  weights = dataclasses.replace(weights, preprocessing=ours, image_size=28)
  assert_runs_alike(weights, tmp_path, True)


def test_a_file_says_what_it_is(tmp_path):
  weights = pretrained('digits', 28)
  save(weights, tmp_path / 'net.onnx')
  model = onnx.load(tmp_path / 'net.onnx')
  assert [(given.domain, given.version) for given in model.opset_import] == [('', 17)]
  said = {entry.key: entry.value for entry in model.metadata_props}
  assert said['net'] == 'digits' and json.loads(said['classes']) == list(weights.classes)


def operations(model):
  """What each node is, with groups and the numbers of response norms."""
  return [
    (node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
    for node in model.graph.node
    if node.op_type not in ('ConstantOfShape', 'Constant')
  ]


def test_caffe_is_the_net_of_the_model_zoo(tmp_path):
  """The same operations in the same order; the geometry of Caffe is another than the zoo's."""
  with files.narrow_nets():
    save(pretrained('caffe', 227, classes=4), tmp_path / 'net.onnx')
  ours = operations(onnx.load(tmp_path / 'net.onnx'))
  theirs = operations(onnx.load(onnx_files.LIGHT / 'light_bvlc_alexnet.onnx'))
  assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
  for (kind, mine), (_, other) in zip(ours, theirs, strict=True):
    if kind == 'Conv':
      assert mine.pop('group') == other.pop('group', 1) and mine == other
    elif kind == 'LRN':
      assert mine == pytest.approx(other)
    elif kind == 'MaxPool':
      assert mine.pop('ceil_mode') and mine == {k: v for k, v in other.items() if k != 'pads'}


# Files of others.


@pytest.fixture
def small():
  with files.narrow_nets(FULL):
    yield


def assert_same_answers(weights, path, images, given):
  """The largest difference to the file's own answers in onnxruntime, one image at a time."""
  views = weights.preprocessing.test_view(images, CENTER)
  found = np.asarray(jax.jit(AlexNet(weights.table).apply)(weights.variables, views))
  program = session(path)
  name = program.get_inputs()[0].name
  given = np.float32(given).transpose(0, 3, 1, 2)
  wanted = np.concatenate([program.run(None, {name: one[None]})[0] for one in given])
  assert np.ptp(wanted, axis=0).max() > 0.1 * np.abs(wanted).max(), 'all images look alike'
  assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def check_zoo(folder, net, arrays):
  """Its geometry gives other answers than Caffe's own, from the same weights."""
  path, images = folder / 'model.onnx', smooth_images(256, 2)
  onnx.save(onnx_files.zoo_model(net, arrays), path)
  weights = load(path)
  assert (weights.net, weights.image_size, weights.resize) == (f'{net}_onnx', 256, 'warp')
  assert 'views of 224 and maps of 54, 26, 12, 6' in weights.source
  center = images[:, 16:240, 16:240]
  assert_same_answers(weights, path, images, center[..., ::-1] - np.float32(BGR_MEAN))
  table = nets.make_table(net, len(weights.classes), 224)
  views = weights.preprocessing.test_view(images, CENTER)
  found, other = (
    np.asarray(AlexNet(rows).apply(weights.variables, views)) for rows in (weights.table, table)
  )
  assert np.abs(found - other).max() > 1e-2 * np.abs(found).max()


BGR_MEAN = (104.007, 116.669, 122.679)


@pytest.mark.parametrize('net', ['caffe', 'caffenet'])
def test_model_zoo(small, tmp_path, net):
  check_zoo(tmp_path, net, files.random_arrays(net))


@pytest.mark.slow
def test_model_zoo_in_full(tmp_path):
  check_zoo(tmp_path, 'caffe', files.random_arrays('caffe', classes=1000, divisor=1))


def exported(folder, arrays, side=224, **options):
  """Path of torch's export of torchvision's net."""
  torch = pytest.importorskip('torch')
  path = folder / 'export.onnx'
  module, example = onnx_files.torchvision_alexnet(arrays), torch.zeros(2, 3, side, side)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of the old exporter, that it is old
    torch.onnx.export(module, (example,), path, **options)
  return path


@pytest.mark.parametrize('form', ['old', 'dynamo'])
def test_exports_of_torch(small, tmp_path, form):
  """The old exporter, and the new one, which puts weights into a file beside it."""
  torch = pytest.importorskip('torch')
  options = {'dynamo': False, 'input_names': ['x'], 'dynamic_axes': {'x': {0: 'n'}}}
  if form == 'dynamo':
    pytest.importorskip('onnxscript')
    options = {'dynamo': True, 'verbose': False, 'dynamic_shapes': ({0: torch.export.Dim('n')},)}
  path, images = exported(tmp_path, files.random_arrays('owt'), **options), smooth_images(256, 2)
  assert (tmp_path / 'export.onnx.data').exists() == (form == 'dynamo')
  weights = load(path)
  assert (weights.net, weights.image_size, weights.resize) == ('owt', 256, 'crop')
  mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
  assert_same_answers(weights, path, images, (images[:, 16:240, 16:240] / 255 - mean) / std)


def refused(path):
  with pytest.raises(UserError) as caught:
    load(path)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500
  return str(caught.value)


@pytest.mark.parametrize(
  'name, reason',
  [
    ('resnet50', 'graph resnet50 is no AlexNet: layer 1 is an operator Conv as no AlexNet has it'),
    ('vgg19', 'is no AlexNet: layer 1 is a convolution (3x3'),
    ('zfnet512', 'is no AlexNet: layer 1 is a convolution (7x7'),
    ('squeezenet', 'is no AlexNet: layer 1 is a convolution (3x3'),
  ],
)
def test_other_nets(name, reason):
  assert reason in refused(onnx_files.LIGHT / f'light_{name}.onnx')


def test_what_is_not_quite_an_alexnet(small, tmp_path):
  path, arrays = tmp_path / 'a.onnx', files.random_arrays('caffe')

  def message(change):
    model = onnx_files.zoo_model('caffe', arrays)
    change(model)
    onnx.save(model, path)
    return refused(path)

  def set_alpha(model):
    model.graph.node[2].attribute[1].f = 2e-4

  def rename(model):
    model.graph.node[13].op_type = 'Sigmoid'

  def branch(model):
    model.graph.node[5].input[0] = model.graph.node[2].output[0]

  def cut(model):
    del model.graph.node[15:]

  def drop_array(model):
    del model.graph.initializer[3]

  def shrink(model):
    array = onnx.numpy_helper.from_array(np.zeros((3, 2), np.float32), 'fc7_w_0')
    model.graph.initializer[13].CopyFrom(array)

  def ours(model):
    model.producer_name = 'alexnet_jax'

  for change, reason in (
    (set_alpha, 'layer 3 is a response norm (size 5, alpha 0.0002, beta 0.75, k 1), where a known'),
    (rename, 'layer 14 is an operator Sigmoid as no AlexNet has it, where a known one has a ReLU'),
    (branch, 'layer 6 is an operator Relu, on another path'),
    (cut, 'it ends after 15 layers'),
    (drop_array, 'its array conv2_w_0 is computed, not stored'),
    (shrink, 'fc7/kernel is 3x2, but net caffe_onnx needs'),
    (ours, 'convert wrote it'),
  ):
    assert reason in message(change)
  assert 'is computed, not stored' in refused(onnx_files.LIGHT / 'light_bvlc_alexnet.onnx')


def test_another_size_of_images(small, tmp_path):
  """torchvision's pools round down, ours round up: the same at 224, and not at 227."""
  path = exported(tmp_path, files.random_arrays('owt'), side=227, dynamo=False)
  wanted = 'layer 3 is a max pool (3x3, stride 2, maps of 27), where .* stride 2, maps of 28'
  assert re.search(wanted.replace('(', r'\(').replace(')', r'\)'), refused(path))


def test_weights_beside_the_file_stay_in_its_folder(small, tmp_path):
  folder, model = tmp_path / 'folder', onnx_files.zoo_model('caffe', files.random_arrays('caffe'))
  folder.mkdir()
  path = folder / 'a.onnx'
  onnx.save(model, path, save_as_external_data=True, location='a.data', size_threshold=0)
  assert load(path).net == 'caffe_onnx'
  good = (folder / 'a.data').read_bytes()
  (tmp_path / 'a.data').write_bytes(good)
  (folder / 'a.data').unlink()
  assert 'a.data is not beside it' in refused(path)
  (folder / 'a.data').symlink_to(tmp_path / 'a.data')
  assert 'a.data is outside of its folder' in refused(path)
  (folder / 'a.data').unlink()
  (folder / 'a.data').write_bytes(good[:-1])
  assert 'a.data is cut short' in refused(path)
  for place in ('../a.data', str(tmp_path / 'a.data'), '/etc/hostname'):
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
      tensor.external_data[0].value = place
    path.write_bytes(moved.SerializeToString())
    assert f'{place} is outside of its folder' in refused(path)
