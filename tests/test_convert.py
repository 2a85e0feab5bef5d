"""What `convert` writes is read by those it is for, and computes the same there."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from helpers import weight_files as files
from helpers.commands import ROOT, error_line, run
from helpers.tiny_data import write_images
from helpers.trained import digits_net, preprocessing, random_variables

from alexnet_jax.errors import UserError
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.nets import NETS
from alexnet_jax.model.pretrained import check_same_classes
from alexnet_jax.weights.load import load
from alexnet_jax.weights.save import save


def pretrained(net, crop, classes=4, **changes):
  """A net with random weights, moments and preprocessing, none of them at its default."""
  fields = {
    'source': 'a test',
    'net': net,
    'variables': random_variables(net, classes, crop),
    'image_size': crop + 4,
    'resize': 'warp',
    'preprocessing': dataclasses.replace(
      preprocessing(crop), resize_to=crop + 8, random_crop=False, random_flip=False
    ),
  }
  return digits_net(tuple(f'{name} é' for name in 'abcdefgh'[:classes]), **fields, **changes)


def assert_equal(one, other):
  """All fields, arrays to the bit."""
  one, other = dataclasses.asdict(one), dataclasses.asdict(other)
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('net, crop', [('digits', 28), ('cifar_bn', 32), ('cifar_11pct', 24)])
def test_our_file_keeps_everything(tmp_path, net, crop):
  weights = pretrained(net, crop)
  save(weights, tmp_path / 'net.npz')
  assert_equal(load(tmp_path / 'net.npz'), weights)
  first = (tmp_path / 'net.npz').read_bytes()
  save(load(tmp_path / 'net.npz'), tmp_path / 'net.npz')
  assert (tmp_path / 'net.npz').read_bytes() == first
  with np.load(tmp_path / 'net.npz', allow_pickle=False) as plain:
    assert json.loads(plain['metadata'].tobytes())['classes'] == list(weights.classes)


def test_our_file_keeps_the_width(tmp_path):
  half = dataclasses.replace(
    pretrained('digits', 28),
    variables=random_variables('digits', 4, 28, width=0.5),
    width=0.5,
    ablations=('no_dropout',),
  )
  save(half, tmp_path / 'half.npz')
  assert_equal(load(tmp_path / 'half.npz'), half)
  with pytest.raises(UserError, match=r'no net digits, width 1/2 \(no_dropout\), only owt'):
    save(half, tmp_path / 'half.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_torchvision_and_back(tmp_path, suffix):
  """Into ours and out again to the bit, as torch and the safetensors library see it."""
  torch = pytest.importorskip('torch')
  import safetensors.torch as library

  state = files.state_dict(files.random_arrays('owt'))
  given, ours, target = (tmp_path / name for name in ('given', 'ours.npz', f'back{suffix}'))
  given.write_bytes(files.torch_file(state))
  with files.narrow_nets():
    save(load(given), ours)
    save(load(ours), target)
    again = load(target)
    assert_equal(dataclasses.replace(again, source=''), dataclasses.replace(load(given), source=''))
  if suffix == '.pth':
    found = torch.load(target, weights_only=True)
    assert list(found) == list(state)
  else:
    found = library.load_file(target)
  assert found.keys() == state.keys()
  for name, value in state.items():
    assert found[name].dtype == torch.float32 and found[name].is_contiguous()
    assert torch.equal(found[name], value), name


def test_what_torchvision_files_cannot_hold(tmp_path):
  with files.narrow_nets():
    weights = pretrained('caffe', 227)
    for suffix in ('.pth', '.safetensors'):
      with pytest.raises(UserError, match='no net caffe, only owt.*stablehlo hold any net'):
        save(weights, tmp_path / f'net{suffix}')
    ours = pretrained('owt', 224)
    with pytest.raises(UserError, match='cannot say how the input is normalized'):
      save(ours, tmp_path / 'net.pth')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match='has to end in .npz, .pth, .safetensors, .stablehlo, .onnx'):
    save(weights, tmp_path / 'net.h5')
  (tmp_path / 'folder.npz').mkdir()
  with pytest.raises(UserError, match='folder.npz cannot be written: Is a directory'):
    save(weights, tmp_path / 'folder.npz')


CONFIG = f'--config={ROOT}/configs/digits.py'
ALONE = """
import sys, numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], 'rb').read())
views = np.load(sys.argv[2])
results = [np.asarray(program.call(views[:count])) for count in (1, 3)]
assert 'alexnet_jax' not in sys.modules
np.savez(sys.argv[3], *results)
"""


@pytest.mark.parametrize('net, crop', [('caffe', 67), ('krizhevsky2012', 64)])
@pytest.mark.slow
def test_stablehlo_runs_alone(tmp_path, net, crop):
  """In a process without this package, for two numbers of views."""
  rng = np.random.default_rng(4)
  with files.narrow_nets(('caffe', 'krizhevsky2012')):
    weights = pretrained(net, crop)
    save(weights, tmp_path / 'net.stablehlo')
    model = AlexNet(NETS[net](4))
  views = rng.integers(0, 256, (3, crop, crop, 3)).astype(np.float32)
  np.save(tmp_path / 'views.npy', views)
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  program = [sys.executable, '-P', '-c', ALONE, 'net.stablehlo', 'views.npy', 'found.npz']
  subprocess.run(program, cwd=tmp_path, env=environment, check=True, timeout=100)
  scaled = (views - weights.preprocessing.mean) * weights.preprocessing.scale
  wanted = np.asarray(model.apply(weights.variables, scaled))
  assert np.ptp(wanted, axis=0).max() > 0.1 * np.abs(wanted).max(), 'all views look alike'
  with np.load(tmp_path / 'found.npz') as found:
    one, three = found['arr_0'], found['arr_1']
  np.testing.assert_allclose(three, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  np.testing.assert_allclose(one, three[:1], rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
def test_command(tmp_path):
  """Converts, and says in one line what is wrong with what it was told."""
  weights = pretrained('digits', 28, classes=3)
  save(weights, tmp_path / 'a.npz')
  (tmp_path / 'names').write_text('x\ny\nz\n')
  done = run('alexnet_jax.convert', 'a.npz', 'b.npz', '--classes=names', folder=tmp_path)
  assert done.returncode == 0 and not done.stderr, done.stderr
  said = done.stdout.splitlines()
  assert said[0].startswith('wrote b.npz, ') and len(said) == 2
  what = (
    'net digits, 3 classes, x to z; images warp to 32, views of 28, RGB of 0-255 minus the mean'
  )
  assert what in said[1]
  # The command that it names evaluates what was written, here on two images of each class.
  for name in 'xyz':
    write_images(tmp_path / 'images' / name, 4)
  command = said[1].partition('evaluate it with python -m ')[2].replace('IMAGES', 'images')
  done = run(*command.split(), '--config.data.validation_fraction=0.5', folder=tmp_path)
  assert done.returncode == 0 and 'over 6 images' in done.stdout, done.stderr
  assert_equal(load(tmp_path / 'b.npz'), dataclasses.replace(weights, classes=('x', 'y', 'z')))
  for arguments, message in (
    ((), 'give SRC and DST'),
    (('a.npz', 'b.h5'), 'b.h5 has to end in .npz'),
    (('a.npz', 'b.npz', '--preprocessing'), '--preprocessing is for .onnx'),
    (('names', 'b.npz'), 'names cannot be loaded'),
    (('a.npz', 'b.npz', '--net=vgg'), '--net=vgg'),
    (('a.npz', 'b.npz', CONFIG), f'{CONFIG}: this command takes none; leave it out'),
  ):
    assert message in error_line(run('alexnet_jax.convert', *arguments, folder=tmp_path))


@pytest.mark.slow
def test_evaluating_weights(tmp_path):
  """Imported weights on the data of a config: every image, with the weights' own preprocessing."""
  from alexnet_jax import config as configs
  from alexnet_jax.data.preparation import prepare_store

  weights = digits_net(tuple(map(str, range(10))))
  save(weights, tmp_path / 'a.npz')
  done = run('alexnet_jax.evaluate', '--weights=a.npz', CONFIG, '--views=1', folder=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'over 359 images' in done.stdout
  with np.load(tmp_path / 'runs/a/predictions-imported-1.npz') as file:
    label, probabilities = file['label'], file['probabilities']
  config = configs.default()
  config.data.source, config.data.image_size = 'digits', 32
  validation = prepare_store(config.data).eval
  views = np.float32(validation.images)[:, 2:30, 2:30] - weights.preprocessing.mean
  wanted = AlexNet(NETS['digits'](10)).apply(weights.variables, views * weights.preprocessing.scale)
  np.testing.assert_array_equal(label, validation.labels)
  np.testing.assert_allclose(probabilities, jax.nn.softmax(wanted), rtol=1e-4, atol=1e-6)
  for arguments, message in (
    (('--weights=a.npz',), '--config is missing'),
    (('--workdir=run', CONFIG), 'a run is evaluated with its own config; leave it out'),
    (('--weights=a.npz', '--workdir=.', CONFIG), 'give one of --workdir'),
    (
      ('--weights=a.npz', CONFIG, '--config.data.image_size=40'),
      'was trained on images of 32 pixels',
    ),
  ):
    assert message in error_line(run('alexnet_jax.evaluate', *arguments, folder=tmp_path))


def test_classes_have_to_be_those_of_the_data():
  """By names where both sides have some: an order is a meaning of the logits."""
  store = types.SimpleNamespace(classes=('n01', 'n02', 'n03'), class_names=('ant', 'bee', 'cat'))

  def check(*classes):
    check_same_classes('net.pth', classes, store)

  check('n01', 'n02', 'n03')
  check('ant', 'bee', 'cat')
  check('class 0', 'class 1', 'class 2')
  with pytest.raises(UserError, match='has 2 classes, the data has 3'):
    check('ant', 'bee')
  with pytest.raises(UserError, match="class 1 is 'n03' in the weights, 'n02' in the data"):
    check('n01', 'n03', 'n02')
