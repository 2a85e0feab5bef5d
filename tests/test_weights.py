"""Weights of others: every format computes what torch computes, and nothing in a file is run."""

import collections
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import jax
import numpy as np
import pytest
from helpers import weight_files as files

from alexnet_jax.data import imagenet
from alexnet_jax.errors import UserError
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.pretrained import Pretrained
from alexnet_jax.weights import npz, torch_file
from alexnet_jax.weights.load import load

CENTER = np.array([0.5, 0.5, 0])


@pytest.fixture
def small():
  with files.narrow_nets():
    yield


@pytest.fixture
def read(tmp_path):
  """Loads bytes from a file whose name says nothing."""

  def load_bytes(data, **arguments):
    (tmp_path / 'weights').write_bytes(data)
    return load(tmp_path / 'weights', **arguments)

  return load_bytes


def smooth_images(side, count=2):
  """Smooth random images, so that response norms have something to do."""
  rng = np.random.default_rng(5)
  coarse = rng.uniform(0, 255, (count, 12, 12, 3))
  return np.uint8(np.kron(coarse, np.ones((1, 22, 22, 1)))[:, :side, :side])


def assert_same_logits(weights: Pretrained, net, arrays, images):
  """Of the center views, as `evaluate` and all else computes them."""
  views = weights.preprocessing.test_view(images, CENTER)
  found = jax.jit(AlexNet(weights.table).apply)(weights.variables, views)
  wanted = files.logits(net, arrays, images)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def torchvision_files(arrays):
  """Files of one net; every type of float holds its values."""
  import torch
  from safetensors.torch import save

  state = files.state_dict(arrays)

  def each(change):
    return {name: change(value) for name, value in state.items()}

  yield 'zip', files.torch_file(state)
  yield 'legacy', files.torch_file(state, legacy=True)
  yield 'safetensors', save(dict(state))
  parallel = {'epoch': 3, 'arch': 'alexnet', 'state_dict': files.state_dict(arrays, 'module.')}
  yield 'training checkpoint', files.torch_file(parallel)
  inside = {name.replace('features.', 'features.module.'): value for name, value in state.items()}
  yield 'parallel features', files.torch_file(inside)
  yield 'parameters', files.torch_file(each(torch.nn.Parameter))
  for dtype in (torch.float16, torch.bfloat16, torch.float64):
    other = each(lambda value, dtype=dtype: value.to(dtype))
    yield f'zip of {dtype}', files.torch_file(other)
    yield f'legacy of {dtype}', files.torch_file(other, legacy=True)
    yield f'safetensors of {dtype}', save(other)
  # Saved as strides, and as offsets into one storage.
  turned = each(lambda value: value.t().contiguous().t() if value.ndim == 2 else value)
  parts = torch.cat([value.reshape(-1) for value in state.values()]).split(
    [value.numel() for value in state.values()]
  )
  shared = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
  for legacy in (False, True):
    yield 'transposed', files.torch_file(turned, legacy=legacy)
    yield 'shared storage', files.torch_file(shared, legacy=legacy)
  # torchvision's first file is of 2017: no _v2, storages of CUDA, Python 2's OrderedDict.
  pairs = [[name, value] for name, value in state.items()]
  old = files.torch_file(files.Evil(collections.OrderedDict, pairs), legacy=True)
  old = old.replace(b'_rebuild_tensor_v2\n', b'_rebuild_tensor\n')
  yield '2017', old.replace(b'ctorch\n', b'ctorch.cuda\n')


def trained(module):
  """The states of an optimizer and a schedule after a step."""
  import torch

  optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
  sum(p.sum() for p in module.parameters()).backward()
  optimizer.step()
  schedule.step()
  return optimizer.state_dict(), schedule.state_dict()


def test_checkpoints_of_torch_and_lightning(small, read):
  """Of ten classes, in half precision, under the names that wrappers give; the rest is not read."""
  torch = pytest.importorskip('torch')
  arrays = files.random_arrays('owt', classes=10)
  wanted = read(files.safetensors_file(arrays))
  assert len(wanted.classes) == 10
  optimizer, schedule = trained(torch.nn.Linear(2, 2))
  module = torch.nn.Module()
  module.features, module.classifier = torch.nn.Module(), torch.nn.Module()
  for name, value in files.state_dict(arrays).items():
    room, number, kind = name.split('.')
    if kind == 'weight':
      getattr(module, room).add_module(number, torch.nn.Module())
    layer = getattr(getattr(module, room), number)
    layer.register_parameter(kind, torch.nn.Parameter(value))
  lightning = torch.nn.Module()
  lightning.model, lightning.criterion = module, torch.nn.CrossEntropyLoss(torch.ones(10))
  parallel = torch.nn.DataParallel(module)
  checkpoint = {
    **{'epoch': 3, 'global_step': 40, 'pytorch-lightning_version': '2.5.0', 'loops': {}},
    'state_dict': lightning.state_dict(),
    'callbacks': {"ModelCheckpoint{'mode': 'min'}": {'best_model_score': torch.tensor(0.3)}},
    **{'optimizer_states': [optimizer], 'lr_schedulers': [schedule]},
    **{'hparams_name': 'kwargs', 'hyper_parameters': {'lr': 0.1, 'betas': (0.9, 0.999)}},
  }
  assert 'criterion.weight' in checkpoint['state_dict']
  forms = [checkpoint, parallel.state_dict(), files.state_dict(arrays, '_orig_mod.')]
  forms.append({'model_state_dict': parallel.state_dict(), 'optimizer_state_dict': optimizer})
  forms.append({f'net.{name}': value for name, value in module.state_dict().items()})
  for dtype in (torch.float16, torch.bfloat16):
    forms.append({'net': module.to(dtype).state_dict(), 'acc': 56.5, 'epoch': 3})
  for number, form in enumerate(forms):
    for legacy in (False, True):
      found = read(files.torch_file(form, legacy=legacy))
      assert found.classes == wanted.classes, number
      jax.tree.map(np.testing.assert_array_equal, found.variables, wanted.variables)
  two = {f'{name}.{key}': a for name in 'ab' for key, a in files.state_dict(arrays).items()}
  refuse(read, files.torch_file(two), "it has several nets, 'a.' and 'b.'")


def test_torchvision(small, read):
  pytest.importorskip('torch')
  arrays = files.random_arrays('owt')
  wanted = None
  for form, data in torchvision_files(arrays):
    weights = read(data)
    assert (weights.net, weights.image_size, weights.resize) == ('owt', 256, 'crop'), form
    assert weights.classes == tuple(f'class {number}' for number in range(7))
    wanted = wanted or weights.variables
    jax.tree.map(np.testing.assert_array_equal, weights.variables, wanted)
  assert_same_logits(weights, 'owt', arrays, smooth_images(224))


@pytest.mark.parametrize('net', ['caffe', 'caffenet'])
def test_caffe(small, read, net):
  pytest.importorskip('torch')
  arrays, images = files.random_arrays(net), smooth_images(227)
  one, other = (files.logits(each, arrays, images) for each in ('caffe', 'caffenet'))
  assert np.abs(one - other).max() > 0.01 * np.abs(one).max(), 'the nets could be mixed up'
  weights = read(files.caffe_file(net, arrays))
  assert (weights.net, weights.image_size, weights.resize) == (net, 256, 'warp')
  assert_same_logits(weights, net, arrays, images)
  dictionary = files.caffe_tensorflow_layers(arrays)
  newer = {name: {'weights': kernel, 'biases': bias} for name, (kernel, bias) in dictionary.items()}
  fortran = {name: [np.asfortranarray(kernel), bias] for name, (kernel, bias) in dictionary.items()}
  old = files.python2_npy_file(dictionary)
  trusted = np.load(io.BytesIO(old), allow_pickle=True, encoding='latin1').item()
  np.testing.assert_array_equal(trusted['fc6'][0], dictionary['fc6'][0])
  others = (old, *map(files.npy_file, (dictionary, newer, fortran)))
  for data in (files.caffe_file(net, arrays, v1=True), *others):
    variables = read(data, net=net).variables
    jax.tree.map(np.testing.assert_array_equal, variables, weights.variables)


def test_which_caffe_net(small, read):
  arrays = files.random_arrays('caffe')
  assert read(files.caffe_file('caffenet', arrays, plain=True)).net == 'caffe'
  assert read(files.caffe_file('caffenet', arrays, plain=True), net='caffenet').net == 'caffenet'
  named = files.caffe_file('caffenet', arrays, plain=True) + b'\n\x08CaffeNet'
  assert read(named).net == 'caffenet'
  assert read(files.caffe_file('caffenet', arrays, classifier='fc8_flickr')).net == 'caffenet'
  refuse(read, files.caffe_file('caffenet', arrays), 'of net caffenet, not caffe', net='caffe')
  refuse(read, files.caffe_file('caffenet', arrays, plain=True), 'one of caffe, c', net='owt')


@pytest.mark.slow
def test_published_sizes(read):
  """The real nets: 1,000 classes in ImageNet's order, and each layer in its place."""
  pytest.importorskip('torch')
  arrays = files.random_arrays('owt', classes=1000, divisor=1)
  weights = read(files.torch_file(files.state_dict(arrays)))
  assert weights.classes == imagenet.published_classes()
  assert sum(leaf.size for leaf in jax.tree.leaves(weights.variables)) == 61_100_840
  assert_same_logits(weights, 'owt', arrays, smooth_images(224, 1))
  arrays = files.random_arrays('caffe', classes=1000, divisor=1)
  weights = read(files.npy_file(files.caffe_tensorflow_layers(arrays)))
  assert sum(leaf.size for leaf in jax.tree.leaves(weights.variables)) == 60_965_224


def test_class_list(small, read, tmp_path):
  data = files.caffe_file('caffe', files.random_arrays('caffe', classes=3))
  names = tmp_path / 'names.txt'
  names.write_text('ant\n  bee \n\ncat, Felis catus\n')
  assert read(data, classes=names).classes == ('ant', 'bee', 'cat, Felis catus')
  for content, message in (
    (b'ant\nbee\n', 'has 2 names; the net has 3 classes'),
    (b'\xff\xfe', 'not UTF-8'),
  ):
    names.write_bytes(content)
    refuse(read, data, message, classes=names)
  refuse(read, data, 'No such file', classes=tmp_path / 'none.txt')


# What is wrong is said in one line that names the layer.


def changed(arrays, layer, part, value):
  arrays = [list(pair) for pair in arrays]
  arrays[layer][part] = value
  return arrays


def test_wrong_layers(small, read):
  torch = pytest.importorskip('torch')
  arrays = files.random_arrays('owt')
  channels, hidden = len(arrays[4][0]), len(arrays[5][0])
  for layer, part, value, message in (
    (5, 0, arrays[5][0][:, :100], rf'1.weight is {hidden}x100, .* needs {hidden}x{channels * 36}$'),
    (5, 1, arrays[5][1][1:], rf'classifier.1.bias is {hidden - 1}, but net owt needs {hidden}$'),
    (1, 0, arrays[1][0][..., :4], 'features.3.weight is 12x4x5x4, but'),
    (6, 0, arrays[6][0] * np.nan, 'classifier.4.weight has values that are not finite'),
    (2, 1, np.full(arrays[2][1].shape, 1e300), 'features.6.bias has values that are not finite'),
    (7, 1, arrays[7][1][:1], 'classifier.6.bias is 1,'),
    (7, 1, arrays[7][1][None], 'classifier.6.bias is 1x7,'),
    (4, 1, np.int64(arrays[4][1]), 'features.10.bias is of type int64, not of floats'),
  ):
    state = files.state_dict(changed(arrays, layer, part, value))
    refuse(read, files.torch_file(state), message)
  state, odd = files.state_dict(arrays), torch.zeros(2)
  for value, message in (
    (dict(list(state.items())[:-1]), 'lacks array classifier.6.bias'),
    ({**state, 'features.1.weight': odd}, 'unknown array features.1.weight'),
    ({'layer4.weight': odd}, 'no array .* but layer4.weight'),
    ({'a\n\x1b[2Jb': odd}, r'but a\?\?\[2Jb'),
    ({}, 'but none at all'),
    ([odd], 'no state dict'),
    ({**state, 'lr': 0.1}, 'other things than arrays'),
  ):
    refuse(read, files.torch_file(value), message)
  good = files.safetensors_file(arrays)
  refuse(read, good.replace(b'"F32"', b'"I32"', 1), 'is of type I32, not of floats')
  refuse(read, good[:-4], 'cut short')


def test_wrong_caffe_layers(small, read):
  arrays = files.random_arrays('caffe')
  cut = changed(arrays, 3, 0, arrays[3][0][:, :3])
  for data, message in (
    (files.caffe_file('caffe', cut, v1=True), 'conv4/kernel is 24x3x3x3, but net caffe needs'),
    (files.caffe_file('caffe', files.random_arrays('owt')), 'conv1/kernel is 4x3'),
    (files.caffe_file('caffe', arrays, classifier='fc9'), 'lacks array fc8/bias'),
    (files.caffe_file('caffe', arrays) * 2, 'two layers conv1'),
    (files.npy_file({'conv1': arrays[0]}), 'lacks array fc8/bias'),
    (files.npy_file({'fc6': arrays[0]}), 'cannot be loaded'),
    (files.npy_file({'conv1': [arrays[0][0]]}), 'layer conv1 is not a pair of arrays'),
    (files.npy_file({'conv1': 3}), 'layer conv1 is not a pair of arrays'),
    (files.npy_file([1, 2]), 'no header of a dictionary of layers'),
  ):
    refuse(read, data, message)


def test_other_files(small, read, tmp_path):
  """What users give by mistake is said by its name, with what to do."""
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 244408911\n'
  tar = io.BytesIO()
  with tarfile.open(fileobj=tar, mode='w') as file:
    file.addfile(tarfile.TarInfo('alexnet.pth'))
  for data, message in (
    (b'', 'it is empty'),
    (pointer, 'Git LFS pointer: run "git lfs pull"'),
    (b'\n <html lang="en">', 'an HTML page.* download the file itself'),
    (gzip.compress(b'weights'), 'a compressed file or an archive: unpack it'),
    (tar.getvalue(), 'or an archive: unpack it'),
    (zipped('a/alexnet.pth'), 'zip archive of a/alexnet.pth: unpack it'),
    (zipped('word/document.xml', zipfile.ZIP_DEFLATED), 'compressed.* of word/document.xml'),
    (b'\x89HDF\r\n\x1a\n' + bytes(100), 'it is HDF5'),
    (b'import torch\n', "a text that begins with 'import torch'"),
    (pickle.dumps({'conv1': 1}), 'not one of torch.save'),
    (b'\xff' * 100, 'nearest that it looks like'),
  ):
    refuse(read, data, message)
  with pytest.raises(UserError, match='does not exist'):
    load(tmp_path / 'nothing.pth')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(UserError, match='neither a file nor a folder'):
    load(tmp_path / 'pipe')
  (tmp_path / 'model').mkdir()
  with pytest.raises(UserError, match='holds no run .*: give the folder of a run'):
    load(tmp_path / 'model')


def zipped(name, compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compression) as file:
    file.writestr(name, bytes(1000))
  return buffer.getvalue()


def refuse(read, data, message, **arguments):
  with pytest.raises(UserError, match=message) as caught:
    read(data, **arguments)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


# Nothing is run, and no size in a file is believed.


def evil_files(mark):
  """Files that create `mark` if any of their code is run."""
  command = files.Evil(os.system, f'touch {mark}')
  nested = {'state_dict': {'features.0.weight': [{'a': (command,)}]}}
  evaluated = files.Evil(eval, f'open({str(mark)!r}, "w")')
  loaded = {'a': files.Evil(pickle.loads, pickle.dumps(command, protocol=2))}
  for value in (command, nested, evaluated, loaded):
    yield pickle.dumps(value, protocol=2)
    yield pickle.dumps(value, protocol=5)
    yield files.torch_file(value)
    yield files.torch_file(value, legacy=True)
    yield files.npy_file({'conv1': value})
  state = files.state_dict(files.random_arrays('owt'))
  # Good weights with something more in their dict; and a state for what is already made.
  yield files.torch_file({**state, 'extra': command})
  yield zip_with(files.torch_file(state), b'\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R.')
  yield zip_with(files.torch_file(state), b'\x80\x02ios\nsystem\n(S"touch"\no.')
  yield zip_with(files.torch_file(state), b'\x80\x02c__builtin__\neval\n}X\x01\x00\x00\x00aNsb.')


def zip_with(data, program):
  """A file of torch.save with another data.pkl."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, 'w') as new:
    for name in old.namelist():
      new.writestr(name, program if name.endswith('data.pkl') else old.read(name))
  return buffer.getvalue()


def test_nothing_is_run(small, read, tmp_path):
  torch = pytest.importorskip('torch')
  mark = tmp_path / 'ran'
  count = 0
  for count, data in enumerate(evil_files(mark), start=1):
    refuse(read, data, 'cannot be loaded')
    assert not mark.exists(), f'file {count} was run'
  assert count == 24
  refuse(read, files.torch_file({'a': files.Evil(os.system, 'true')}), "call 'posix.system'")
  refuse(read, files.torch_file(torch.nn.Linear(2, 2)), r'torch.save\(model.state_dict')
  # The files are as bad as they should be: torch itself runs the third.
  third = list(evil_files(mark))[2]
  torch.load(io.BytesIO(third), weights_only=False)
  assert mark.exists()


def test_sizes_in_a_file_are_not_believed(small, read):
  """A few bytes that ask for terabytes: as memo place, tensor, storage, header or message."""
  pytest.importorskip('torch')
  state = files.state_dict(files.random_arrays('owt'))
  good, legacy = files.torch_file(state), files.torch_file(state, legacy=True)
  with zipfile.ZipFile(io.BytesIO(good)) as archive:
    program = archive.read('archive/data.pkl')
  wanted = b'K%c\x85' % len(state['features.0.bias'])  # the shape of that bias
  assert wanted in program
  deep = b'(' * 100_000 + b't' * 100_000
  # Storage keys that double in length with every line, were they ever written out.
  keys = legacy[: legacy.index(b'\x80\x02]')] + b'\x80\x02])' + b'q\0h\0\x86' * 60 + b'a.'
  shapes = (b'J\xff\xff\xff\x7f\x85', b'J\xff\xff\xff\xff\x85', b'\x89\x85', b'))\x86')
  for data, message in (
    (zip_with(good, b'\x80\x02}r\xff\xff\xff\x7f.'), 'none at all'),
    (zip_with(good, b'\x80\x04\x8e' + b'\xff' * 7 + b'\x7f'), 'damaged'),
    *((zip_with(good, program.replace(wanted, shape, 1)), 'be loaded') for shape in shapes),
    (zip_with(good, b'\x80\x02' + deep + b'.'), 'no state dict'),
    (zip_with(good, b'\x80\x02}' + deep + b'Ns.'), 'damaged'),
    (keys + legacy, 'list of storages'),
    (struct.pack('<Q', 2**62) + b'{"a": 1}', 'header too large'),
    (b'\x0a\xff\xff\xff\xff\x0f', 'damaged'),
    (zipped('metadata.npy', zipfile.ZIP_DEFLATED), 'compressed'),
  ):
    refuse(read, data, message)
  for view in ((3, (2,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (0, (5,), (0,))):
    with pytest.raises(ValueError):
      torch_file.rebuild_tensor(np.zeros(4, np.float32), *view)


def test_metadata_of_our_own_file(small, read):
  weights = read(files.caffe_file('caffe', files.random_arrays('caffe')))
  with np.load(io.BytesIO(npz.write(weights)), allow_pickle=False) as file:
    arrays = dict(file)
  metadata = json.loads(arrays.pop('metadata').tobytes())

  def wrong(metadata, **changes):
    buffer = io.BytesIO()
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    kept = {name: a for name, a in {**arrays, **changes}.items() if a is not None}
    np.savez(buffer, metadata=np.frombuffer(text, np.uint8), **kept)
    return buffer.getvalue()

  assert read(wrong(metadata)).classes == weights.classes
  not_allowed = (
    *({'net': 3}, {'classes': ['a']}, {'classes': 'abcdefg'}, {'crop': 0}, {'crop': 257}),
    *({'crop': True}, {'resize': 'stretch'}, {'random_flip': 1}, {'width': 0.3}, {'width': True}),
  )
  for changes, message in (
    ({'version': 2}, r"its format and version are \('alexnet_jax', 2\), not .*1\)"),
    ({'net': 'vgg'}, "of net 'vgg', which this version does not have"),
    ({'net': 'digits'}, 'array'),
    ({'classes': ['a'] * 8}, 'fc8.* is .*7'),
    ({'crop': 12}, 'too small'),
    ({'width': 0.5}, 'conv2: 3 input .* divisible by groups=2'),
    *((changes, 'a field has a value') for changes in not_allowed),
  ):
    refuse(read, wrong({**metadata, **changes}), message)
  for name in metadata:
    less = {key: value for key, value in metadata.items() if key != name}
    if name == 'width':  # in full
      assert read(wrong(less)).width == 1
    else:
      refuse(read, wrong(less), 'metadata is damaged')
  refuse(read, wrong(b'{'), 'cannot be loaded')
  refuse(read, wrong(b'[' * 100_000), 'metadata is damaged')
  kernel = 'params/fc7/kernel'
  refuse(read, wrong(metadata, **{kernel: None}), f'lacks array {kernel}')
  refuse(read, wrong(metadata, **{kernel: arrays[kernel][1:]}), f'{kernel} is 255x256, but net')
  refuse(read, wrong(metadata, extra=np.zeros(3, np.float32)), 'unknown array extra')
