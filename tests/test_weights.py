"""Weights of others: every format computes what torch computes, and nothing in a file is run."""

import collections
import functools
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
from alexnet_jax.weights import caffe, npz, safetensors, torch_file
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


def photos(side, count=2):
  """Smooth random pictures, so that response norms have something to do."""
  rng = np.random.default_rng(5)
  coarse = rng.uniform(0, 255, (count, 12, 12, 3))
  return np.uint8(np.kron(coarse, np.ones((1, 22, 22, 1)))[:, :side, :side])


def logits(weights: Pretrained, images):
  """Of the center views, as `evaluate` and all else computes them."""
  views = weights.preprocessing.test_view(images, CENTER)
  return np.asarray(compiled(weights.table)(weights.variables, views))


@functools.cache
def compiled(table):
  return jax.jit(AlexNet(table).apply)


def assert_same(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def torchvision_files(arrays):
  state = files.state_dict(arrays)
  yield 'zip', files.torch_file(state)
  yield 'legacy', files.torch_file(state, legacy=True)
  yield 'safetensors', files.safetensors_file(arrays)
  parallel = {'epoch': 3, 'arch': 'alexnet', 'state_dict': files.state_dict(arrays, 'module.')}
  yield 'training checkpoint', files.torch_file(parallel)
  inside = {name.replace('features.', 'features.module.'): value for name, value in state.items()}
  yield 'parallel features', files.torch_file(inside)
  yield 'double precision', files.torch_file({name: v.double() for name, v in state.items()})


def test_torchvision(small, read):
  pytest.importorskip('torch')
  arrays, images = files.random_arrays('owt'), photos(224)
  wanted = files.torchvision_logits(arrays, images)
  for form, data in torchvision_files(arrays):
    weights = read(data)
    assert (weights.net, weights.image_size, weights.resize) == ('owt', 256, 'crop'), form
    assert weights.classes == tuple(f'class {number}' for number in range(7))
    assert_same(logits(weights, images), wanted)


def test_half_precision_and_parameters(small, read):
  torch = pytest.importorskip('torch')
  arrays = files.random_arrays('owt')
  state = files.state_dict(arrays)
  exact = read(files.torch_file(state)).variables['params']['fc7']['kernel']
  for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
    rounded = {
      name: torch.nn.Parameter(value.to(dtype), requires_grad=False)
      for name, value in state.items()
    }
    found = read(files.torch_file(rounded)).variables['params']['fc7']['kernel']
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=tolerance, atol=1e-6)
    np.testing.assert_array_equal(found, rounded['classifier.4.weight'].float().numpy().T)


def test_views_of_tensors(small, read):
  """Transposed tensors, and tensors that lie in one storage, are saved as strides and offsets."""
  torch = pytest.importorskip('torch')
  state = files.state_dict(files.random_arrays('owt'))
  wanted = read(files.torch_file(state)).variables['params']
  flat = torch.cat([value.reshape(-1) for value in state.values()])
  shared, place = {}, 0
  for name, value in state.items():
    shared[name] = flat[place : place + value.numel()].view(value.shape)
    place += value.numel()
  turned = {name: value.t().contiguous().t() if value.ndim == 2 else value
            for name, value in state.items()}  # fmt: skip
  for value in (shared, turned):
    for legacy in (False, True):
      found = read(files.torch_file(value, legacy=legacy)).variables['params']
      jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_files_of_the_first_years(small, read):
  """torchvision's first file is of 2017: no _v2, storages of CUDA, Python 2's OrderedDict."""
  pytest.importorskip('torch')
  state = files.state_dict(files.random_arrays('owt'))
  wanted = read(files.torch_file(state)).variables['params']
  pairs = [[name, value] for name, value in state.items()]
  data = files.torch_file(files.Evil(collections.OrderedDict, pairs), legacy=True)
  for new, old in (
    (b'_rebuild_tensor_v2\n', b'_rebuild_tensor\n'),
    (b'ctorch\n', b'ctorch.cuda\n'),
  ):
    assert new in data
    data = data.replace(new, old)
  jax.tree.map(np.testing.assert_array_equal, read(data).variables['params'], wanted)


@pytest.mark.parametrize('net', ['caffe', 'caffenet'])
def test_caffe(small, read, net):
  pytest.importorskip('torch')
  arrays, images = files.random_arrays(net), photos(227)
  wanted = files.caffe_logits(net, arrays, images)
  other = files.caffe_logits('caffenet' if net == 'caffe' else 'caffe', arrays, images)
  assert np.abs(wanted - other).max() > 0.01 * np.abs(wanted).max(), 'the nets could be mixed up'
  for v1 in (False, True):
    weights = read(files.caffe_file(net, arrays, v1=v1))
    assert (weights.net, weights.image_size, weights.resize) == (net, 256, 'warp')
    assert_same(logits(weights, images), wanted)
  dictionary = files.caffe_tensorflow_layers(arrays)
  newer = {name: {'weights': kernel, 'biases': bias} for name, (kernel, bias) in dictionary.items()}
  fortran = {name: [np.asfortranarray(kernel), bias] for name, (kernel, bias) in dictionary.items()}
  old = files.python2_npy_file(dictionary)
  trusted = np.load(io.BytesIO(old), allow_pickle=True, encoding='latin1').item()
  np.testing.assert_array_equal(trusted['fc6'][0], dictionary['fc6'][0])
  for data in (old, *map(files.npy_file, (dictionary, newer, fortran))):
    assert_same(logits(read(data, net=net), images), wanted)


def test_which_caffe_net(small, read):
  arrays = files.random_arrays('caffe')
  assert read(files.caffe_file('caffenet', arrays, plain=True)).net == 'caffe'
  assert read(files.caffe_file('caffenet', arrays, plain=True), net='caffenet').net == 'caffenet'
  named = files.caffe_file('caffenet', arrays, plain=True) + b'\n\x08CaffeNet'
  assert read(named).net == 'caffenet'
  assert read(files.caffe_file('caffenet', arrays, classifier='fc8_flickr')).net == 'caffenet'
  with pytest.raises(UserError, match='of net caffenet, not caffe'):
    read(files.caffe_file('caffenet', arrays), net='caffe')
  with pytest.raises(UserError, match='one of caffe, caffenet'):
    read(files.caffe_file('caffenet', arrays, plain=True), net='owt')


@pytest.mark.slow
def test_published_sizes(read):
  """The real nets: 1,000 classes in ImageNet's order, and each layer in its place."""
  pytest.importorskip('torch')
  arrays, images = files.random_arrays('owt', classes=1000, divisor=1), photos(224, 1)
  weights = read(files.torch_file(files.state_dict(arrays)))
  assert weights.classes == imagenet.published_classes()
  assert sum(leaf.size for leaf in jax.tree.leaves(weights.variables)) == 61_100_840
  assert_same(logits(weights, images), files.torchvision_logits(arrays, images))
  arrays = files.random_arrays('caffe', classes=1000, divisor=1)
  weights = read(files.npy_file(files.caffe_tensorflow_layers(arrays)))
  assert sum(leaf.size for leaf in jax.tree.leaves(weights.variables)) == 60_965_224


def test_class_list(small, read, tmp_path):
  data = files.caffe_file('caffe', files.random_arrays('caffe', classes=3))
  names = tmp_path / 'names.txt'
  names.write_text('ant\n  bee \n\ncat, Felis catus\n')
  assert read(data, classes=names).classes == ('ant', 'bee', 'cat, Felis catus')
  names.write_text('ant\nbee\n')
  with pytest.raises(UserError, match='has 2 names; the net has 3 classes'):
    read(data, classes=names)
  names.write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match='not UTF-8'):
    read(data, classes=names)
  with pytest.raises(UserError, match='No such file'):
    read(data, classes=tmp_path / 'none.txt')


# What is wrong is said in one line that names the layer.


def changed(arrays, layer, kernel=None, bias=None):
  arrays = list(arrays)
  old = arrays[layer]
  arrays[layer] = (old[0] if kernel is None else kernel, old[1] if bias is None else bias)
  return arrays


def test_wrong_layers(small, read):
  pytest.importorskip('torch')
  arrays = files.random_arrays('owt')
  state = files.state_dict(arrays)
  nan = arrays[6][0].copy()
  nan[3, 4] = np.nan
  huge = np.full(arrays[2][1].shape, 1e300)
  channels, hidden = len(arrays[4][0]), len(arrays[5][0])
  cases = {
    rf'classifier.1.weight is {hidden}x100, but net owt needs {hidden}x{channels * 36}$': (
      changed(arrays, 5, kernel=arrays[5][0][:, :100])
    ),
    rf'classifier.1.bias is {hidden - 1}, but net owt needs {hidden}$': (
      changed(arrays, 5, bias=arrays[5][1][1:])
    ),
    'features.3.weight is 8x2x5x4, but': changed(arrays, 1, kernel=arrays[1][0][..., :4]),
    'classifier.4.weight has values that are not finite': changed(arrays, 6, kernel=nan),
    'features.6.bias has values that are not finite': changed(arrays, 2, bias=huge),
    'classifier.6.bias is 1,': changed(arrays, 7, arrays[7][0][:1], arrays[7][1][:1]),
    'classifier.6.bias is 1x7,': changed(arrays, 7, bias=arrays[7][1][None]),
  }
  for message, wrong in cases.items():
    refuse(read, files.torch_file(files.state_dict(wrong)), message)
  refuse(read, files.torch_file(dict(list(state.items())[:-1])), 'lacks array classifier.6.bias')
  refuse(read, files.torch_file({**state, 'features.1.weight': nan_tensor()}), 'features.1.weight')
  refuse(read, files.torch_file({'layer4.weight': nan_tensor()}), 'no array .* but layer4.weight')
  refuse(read, files.torch_file({'a\n\x1b[2Jb': nan_tensor()}), r'but a\?\?\[2Jb')
  refuse(read, files.torch_file({}), 'but none at all')
  refuse(read, files.torch_file([nan_tensor()]), 'no state dict')
  refuse(read, files.torch_file({**state, 'lr': 0.1}), 'other things than arrays')
  good = files.safetensors_file(arrays)
  refuse(read, good.replace(b'"F32"', b'"I32"', 1), 'is of type I32, not of floats')
  refuse(read, good[:-4], 'cut short')


def nan_tensor():
  import torch

  return torch.full((2,), torch.nan)


def test_wrong_caffe_layers(small, read):
  arrays = files.random_arrays('caffe')
  cut = changed(arrays, 3, kernel=arrays[3][0][:, :3])
  refuse(read, files.caffe_file('caffe', cut, v1=True), 'conv4/kernel is 16x3x3x3, but net')
  refuse(read, files.caffe_file('caffe', files.random_arrays('owt')), 'conv1/kernel is 2x3')
  owner = files.caffe_file('caffe', arrays, classifier='fc9')
  refuse(read, owner, 'lacks array fc8/bias')
  twice = files.caffe_file('caffe', arrays) * 2
  refuse(read, twice, 'two layers conv1')
  refuse(read, files.npy_file({'conv1': list(arrays[0])}), 'lacks array fc8/bias')
  refuse(read, files.npy_file({'conv1': [arrays[0][0]]}), 'layer conv1 is not a pair of arrays')
  refuse(read, files.npy_file({'conv1': 3}), 'layer conv1 is not a pair of arrays')
  refuse(read, files.npy_file([1, 2]), 'no header of a dictionary of layers')


def test_other_files(small, read, tmp_path):
  """What users give by mistake is said by its name, with what to do."""
  pages = (b'<!DOCTYPE html>\n<title>Log in</title>', b'\n <html lang="en">')
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 244408911\n'
  tar = io.BytesIO()
  with tarfile.open(fileobj=tar, mode='w') as file:
    file.addfile(tarfile.TarInfo('alexnet.pth'))
  for data, message in (
    (b'', 'it is empty'),
    (pointer, 'Git LFS pointer: run "git lfs pull"'),
    *((page, 'an HTML page.* download the file itself') for page in pages),
    (gzip.compress(b'weights'), 'a compressed file or an archive: unpack it'),
    (tar.getvalue(), 'or an archive: unpack it'),
    (zipped('a/alexnet.pth'), 'zip archive of a/alexnet.pth: unpack it'),
    (zipped('word/document.xml', zipfile.ZIP_DEFLATED), 'compressed.* of word/document.xml'),
    (b'\x08\x07\x12\x07pytorch', 'it is ONNX: save the state_dict'),
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


def refuse(read, data, message):
  with pytest.raises(UserError, match=message) as caught:
    read(data)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


# Nothing is run, and no size in a file is believed.


def evil_files(mark):
  """Files that create `mark` if any of their code is run."""
  command = files.Evil(os.system, f'touch {mark}')
  nested = {'state_dict': {'features.0.weight': [{'a': (command,)}]}}
  evaluated = files.Evil(eval, f'open({str(mark)!r}, "w")')
  for value in (
    command,
    nested,
    evaluated,
    {'a': files.Evil(pickle.loads, files.pickled(command))},
  ):
    yield files.pickled(value)
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


@pytest.mark.slow
def test_sizes_in_a_file_are_not_believed(small, read):
  """A few bytes that ask for terabytes: as memo place, tensor, storage, header or message."""
  pytest.importorskip('torch')
  state = files.state_dict(files.random_arrays('owt'))
  good = files.torch_file(state)
  with zipfile.ZipFile(io.BytesIO(good)) as archive:
    program = archive.read('archive/data.pkl')
  refuse(read, zip_with(good, b'\x80\x02}r\xff\xff\xff\x7f.'), 'none at all')
  refuse(read, zip_with(good, b'\x80\x04\x8e' + b'\xff' * 7 + b'\x7f'), 'cannot be loaded')
  first = len(state['features.0.bias'])
  wanted = b'K%c\x85' % first  # the shape of that bias
  assert wanted in program
  for shape in (b'J\xff\xff\xff\x7f\x85', b'J\xff\xff\xff\xff\x85', b'\x89\x85', b'))\x86'):
    refuse(read, zip_with(good, program.replace(wanted, shape, 1)), 'cannot be loaded')
  deep = b'\x80\x02' + b'(' * 100_000 + b't' * 100_000 + b'.'
  refuse(read, zip_with(good, deep), 'no state dict')
  deep_key = b'\x80\x02}' + b'(' * 100_000 + b't' * 100_000 + b'Ns.'
  refuse(read, zip_with(good, deep_key), 'damaged')
  # Storage keys that double in length with every line, were they ever written out.
  legacy = files.torch_file(state, legacy=True)
  keys = legacy.index(b'\x80\x02]')
  refuse(read, legacy[:keys] + b'\x80\x02])' + b'q\0h\0\x86' * 60 + b'a.' + legacy, 'list of')
  refuse(read, struct.pack('<Q', 2**62) + b'{"a": 1}', 'header too large')
  refuse(read, b'\x0a\xff\xff\xff\xff\x0f', 'damaged')
  bomb = io.BytesIO()
  with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('metadata.npy', bytes(50_000_000))
  refuse(read, bomb.getvalue(), 'compressed')


def test_readers_agree_with_the_libraries(small):
  """Not only the arrays of a net: names, order and every type of number."""
  torch = pytest.importorskip('torch')
  from safetensors.torch import load, save

  values = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
  kinds = ('float16', 'bfloat16', 'float32', 'float64')
  tensors = {f'α/{kind}': values.to(getattr(torch, kind)) for kind in kinds}
  tensors['empty'] = torch.zeros(3, 0, 2)
  ours = safetensors.read(save(tensors))
  assert {name: array.dtype.name for name, array in ours.items()} == {
    name: str(tensor.dtype).removeprefix('torch.') for name, tensor in tensors.items()
  }
  arrays = {name: np.float32(array) for name, array in ours.items()}
  opened = torch.load(io.BytesIO(torch_file.write_zip(arrays)), weights_only=True)
  assert list(opened) == list(arrays)
  found = load(safetensors.write(arrays))
  for name, tensor in tensors.items():
    for read_back in (torch.from_numpy(arrays[name]), opened[name], found[name]):
      torch.testing.assert_close(read_back, tensor.float(), rtol=0, atol=0)


def test_unpacked_numbers_of_protobuf():
  """A writer may leave repeated numbers unpacked, or split them."""
  values = np.arange(3, dtype='<f4')
  single = b''.join(b'\x2d' + value.tobytes() for value in values)  # field 5, four bytes each
  blob = single + b'\x3a\x02\x08\x03'  # shape { dim: 3 }
  layer = b'\x0a\x05conv1' + b'\x3a' + bytes([len(blob)]) + blob
  _, found = caffe.read(b'\xa2\x06' + bytes([len(layer)]) + layer)
  np.testing.assert_array_equal(found['conv1/kernel'], values)


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
  for changes, message in (
    ({'format': 'other'}, "its format is 'other'"),
    ({'version': 2}, 'of version 2; this is version 1'),
    ({'net': 'vgg'}, "of net 'vgg', which this version does not have"),
    ({'net': 'digits'}, 'array'),
    ({'net': 3}, 'a field has a value'),
    ({'classes': ['a']}, 'a field has a value'),
    ({'classes': ['a'] * 8}, 'fc8.* is .*7'),
    ({'classes': 'abcdefg'}, 'a field has a value'),
    ({'crop': 0}, 'a field has a value'),
    ({'crop': 257}, 'a field has a value'),
    ({'crop': 12}, 'too small|leaves|needs'),
    ({'crop': True}, 'a field has a value'),
    ({'resize': 'stretch'}, 'a field has a value'),
    ({'random_flip': 1}, 'a field has a value'),
  ):
    refuse(read, wrong({**metadata, **changes}), message)
  for name in metadata:
    less = {key: value for key, value in metadata.items() if key != name}
    refuse(read, wrong(less), 'metadata is damaged')
  refuse(read, wrong(b'{'), 'cannot be loaded')
  refuse(read, wrong(b'[]'), 'metadata is damaged')
  refuse(read, wrong(b'[' * 100_000), 'metadata is damaged')
  kernel = 'params/fc7/kernel'
  refuse(read, wrong(metadata, **{kernel: None}), f'lacks array {kernel}')
  refuse(read, wrong(metadata, **{kernel: arrays[kernel][1:]}), f'{kernel} is 169x170, but net')
  refuse(read, wrong(metadata, **{kernel: arrays[kernel] * np.nan}), f'{kernel} has values')
  refuse(read, wrong(metadata, extra=np.zeros(3, np.float32)), 'unknown array extra')
  refuse(read, wrong(metadata, extra=np.zeros(3, np.int64)), 'unknown array extra')
