"""ONNX as onnxruntime and the onnx package see it: what we write, and what others have written."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import weight_files as files
from test_convert import pretrained
from test_nets import PUBLISHED

from alexnet_jax.model import nets
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.weights.save import save

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

CENTER = np.array([0.5, 0.5, 0])
LIGHT = Path(onnx.__file__).parent / 'backend/test/data/light'
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
  edits = ('no_cross_tower', 'tanh', 'no_dropout')
  with files.narrow_nets(FULL):
    rows = pretrained('krizhevsky2012', 224, ablations=edits).table
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
  theirs = operations(onnx.load(LIGHT / 'light_bvlc_alexnet.onnx'))
  assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
  for (kind, mine), (_, other) in zip(ours, theirs, strict=True):
    if kind == 'Conv':
      assert mine.pop('group') == other.pop('group', 1) and mine == other
    elif kind == 'LRN':
      assert mine == pytest.approx(other)
    elif kind == 'MaxPool':
      assert mine.pop('ceil_mode') and mine == {k: v for k, v in other.items() if k != 'pads'}
