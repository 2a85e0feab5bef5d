"""Trained nets on images, against Pillow, NumPy, PyTorch and scikit-learn."""

import dataclasses
import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import error_line, run
from helpers.trained import (
  CLASSES,
  digits_config,
  digits_net,
  preprocessing,
  random_variables,
  write_run,
)
from PIL import Image

from alexnet_jax.data import imagenet, images
from alexnet_jax.errors import UserError
from alexnet_jax.inference import image_predictions, neighbors
from alexnet_jax.inference.predictor import Predictor
from alexnet_jax.weights.run_folder import load_workdir


def write_photos(folder, count, *, names=('ant', 'bee'), size=(40, 52), seed=0):
  """Smooth images, `count` in a folder for each name; returns the files in order."""
  random = np.random.default_rng(seed)
  files = []
  for name in names:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
      coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
      files.append(folder / name / f'{number:02}.png')
      coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(files[-1])
  return files


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photos')
  return folder, write_photos(folder, 5)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  return write_run(workdir, digits_config(), digits_net().variables)


def by_torch(file, net, places):
  """Features of relu4 and probabilities by other libraries.

  Args:
    file: an image whose height is the smaller side.
    net: see `trained.digits_net`.
    places: (row, column, mirrored) of each view, as corners of its square in the image.
  """
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  image = Image.open(file).convert('RGB')
  width = int(image.width * 32 / image.height + 0.5)
  left = (width - 32) // 2
  square = image.resize((width, 32), Image.Resampling.BILINEAR).crop((left, 0, left + 32, 32))
  params = net.variables['params']

  def weights(name):
    kernel, bias = params[name]['kernel'], params[name]['bias']
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    return torch.tensor(kernel.transpose(axes).copy()), torch.tensor(bias)

  hidden, probabilities = [], []
  for top, left, mirrored in places:
    view = np.asarray(square, np.float32)[top : top + 28, left : left + 28]
    view = view[:, ::-1] if mirrored else view
    inputs = (view - net.preprocessing.mean) * net.preprocessing.scale
    x = torch.tensor(inputs.transpose(2, 0, 1)[None].copy())
    for name, padding, normalized in (('conv1', 2, True), ('conv2', 2, True), ('conv3', 1, False)):
      x = functional.relu(functional.conv2d(x, *weights(name), padding=padding))
      x = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0) if normalized else x
      x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    x = functional.relu(functional.linear(x.permute(0, 2, 3, 1).flatten(1), *weights('fc4')))
    hidden.append(x[0].numpy())
    logits = functional.linear(0.5 * x, *weights('fc5'))  # as in 2012, the test halves
    probabilities.append(functional.softmax(logits, 1)[0].numpy())
  return np.mean(hidden, 0), np.mean(probabilities, 0)


CENTER = [(2, 2, 0)]
TEN = [(y, x, m) for m in (0, 1) for y, x in ((0, 0), (0, 4), (2, 2), (4, 0), (4, 4))]


@pytest.mark.parametrize('views, places', [(1, CENTER), (10, TEN)])
def test_predictions_and_features_agree_with_torch(photos, views, places):
  _, files = photos
  net = digits_net()
  found = Predictor(net, views=views)(files[:3], top=7, features='relu4')
  for file, prediction in zip(files, found, strict=False):
    hidden, probabilities = by_torch(file, net, places)
    order = np.argsort(-probabilities)
    assert prediction.labels == tuple(order)
    assert prediction.classes == tuple(CLASSES[i] for i in order)
    np.testing.assert_allclose(prediction.probabilities, probabilities[order], rtol=2e-4)
    np.testing.assert_allclose(prediction.features, hidden, rtol=1e-3, atol=1e-3)
    assert prediction.features.dtype == np.float32
  assert len({prediction.classes for prediction in found}) > 1  # the images do matter


def test_forms_of_inputs(photos):
  """One gives one prediction, many a list, whatever the form; each form the same as its file."""
  _, files = photos
  predictor = Predictor(digits_net())
  pixels = np.stack([np.asarray(Image.open(file)) for file in files[:3]])
  gray = pixels[..., 0]
  first, *_ = colored = predictor(files[:3])
  first_gray, *_ = grays = predictor([np.stack([each] * 3, -1) for each in gray])
  assert first.name == str(files[0]) and first_gray.name == '#1'
  assert (first.true_class, first_gray.true_class) == ('ant', '')
  (nested := files[0].parent / 'of 2012').mkdir(exist_ok=True)
  assert predictor(shutil.copy(files[0], nested)).true_class == 'ant'
  shutil.rmtree(nested)
  for given, wanted in (
    (str(files[0]), first),
    (files[0], first),
    (Image.open(files[0]), first),
    (pixels[0], first),
    (jnp.asarray(pixels[0]), first),
    (gray[0], first_gray),
    (gray[0][..., None], first_gray),
    (Image.fromarray(gray[0]), first_gray),
    (pixels, colored),
    (gray[..., None], grays),
    (iter(pixels), colored),
    (np.array(list(map(str, files[:3]))), colored),
    (tuple(map(Image.open, files[:3])), colored),
    ([files[0], pixels[1], Image.open(files[2])], colored),
    ([files[0]], [first]),
    ([], []),
  ):
    found = predictor(given)
    assert isinstance(found, list) == isinstance(wanted, list)
    pairs = zip(found, wanted, strict=True) if isinstance(found, list) else [(found, wanted)]
    for one, other in pairs:
      assert one.classes == other.classes
      np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)


@pytest.mark.parametrize(
  'given, told',
  [
    (np.zeros((8, 8, 3)), r'input 1, ndarray of float64, shape \(8, 8, 3\), is no image: give'),
    (np.zeros((5, 8, 8), np.uint8), r'shape \(5, 8, 8\)'),
    (np.zeros((2, 8, 8, 4), np.uint8), r'shape \(8, 8, 4\)'),
    (np.zeros((0, 8, 3), np.uint8), r'shape \(0, 8, 3\)'),
    (['a.png', None], 'input 2, NoneType None, is no image'),
    (b'\x89PNG', 'bytes'),
    ({'a.png': 1}, 'dict'),
    (3, 'int 3'),
  ],
)
def test_what_is_no_image_is_refused(given, told):
  with pytest.raises(UserError, match=told):
    images.as_list(given)


def test_many_images_come_back_in_order_around_broken_ones(tmp_path):
  files = write_photos(tmp_path, 30, names=('ant', 'bee', 'cat'), size=(33, 33))
  broken = {3, 40, 41, 89}
  for place in broken:
    files[place].write_bytes(files[place].read_bytes()[:150])
  whole = Predictor(digits_net(), batch_size=90)
  parts = Predictor(digits_net(), batch_size=8)
  counted = []
  found = list(parts.stream(files, advance=counted.append))
  assert [prediction.name for prediction in found] == list(map(str, files))
  assert {i for i, prediction in enumerate(found) if prediction.error} == broken
  assert sum(counted) == 90 and len(counted) == 12
  for one, other in zip(found, whole(files), strict=True):
    assert one.labels == other.labels
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)


def test_unknown_layer_and_equal_views_are_refused():
  predictor = Predictor(digits_net())
  with pytest.raises(UserError, match="no layer 'pol3': did you mean pool3"):
    predictor(['a.png'], features='pol3')
  with pytest.raises(UserError, match='10 views: all are the same'):
    Predictor(digits_net(image_size=28), views=10)


@pytest.mark.parametrize(
  'net, layer', [('digits', 'relu4'), ('owt', 'relu7'), ('cifar_80sec', 'relu64'), ('bn', 'relu7')]
)
def test_last_hidden_layer(net, layer):
  assert Predictor(digits_net(net=net, variables={})).last_hidden == layer


def test_imagenet_folders_are_classes():
  classes = tuple(f'word {i}' for i in range(1000))
  predictor = Predictor(digits_net(classes))
  (found,) = predictor([np.zeros((40, 40, 3), np.uint8)])
  assert found.true_label is None
  wnid = imagenet.published_classes()[388]
  assert wnid == 'n02510455'  # the giant panda
  assert predictor._true_label(f'/photos/{wnid}/a.jpg') == 388


# Neighbors.


def test_neighbors_agree_with_scikit_learn():
  from sklearn.neighbors import NearestNeighbors

  random = np.random.default_rng(0)
  # Large and close together: the distances of squared norms would lose their digits.
  features = (1e4 + random.normal(size=(300, 4, 8))).astype(np.float32)
  gallery = [image_predictions.ImagePrediction(f'/{i}', features=x) for i, x in enumerate(features)]
  search = NearestNeighbors(n_neighbors=7, algorithm='brute', metric='euclidean')
  search.fit(features.reshape(300, -1).astype(np.float64) - 1e4)
  distances, rows = search.kneighbors(n_neighbors=7)  # none is its own
  found = neighbors.search(gallery[:20], gallery, 7)
  for nearest, row, distance in zip(found, rows, distances, strict=False):
    assert [each.name for _, each in nearest] == [f'/{i}' for i in row]
    np.testing.assert_allclose([far for far, _ in nearest], distance, rtol=1e-9)
  other = image_predictions.ImagePrediction('/other/0', features=features[0])
  assert neighbors.search([other], gallery, 1)[0][0] == (0, gallery[0])


# Runs as nets.


def test_a_run_gives_its_averaged_weights(tmp_path):
  variables, ema = (random_variables('digits', 7, 28, seed) for seed in (1, 2))
  config = digits_config(ema_decay=0.9)
  write_run(tmp_path / 'run', config, variables, ema=ema['params'])
  write_run(tmp_path / 'run', config, variables, kind='last', step=9)
  best, last = load_workdir(tmp_path / 'run'), load_workdir(tmp_path / 'run', 'last')
  for name, kernel in ema['params']['conv2'].items():
    np.testing.assert_array_equal(best.variables['params']['conv2'][name], kernel)
    kernel = variables['params']['conv2'][name]
    np.testing.assert_array_equal(last.variables['params']['conv2'][name], kernel)
  assert best.classes == CLASSES and (best.image_size, best.resize) == (32, 'crop')
  np.testing.assert_array_equal(best.preprocessing.mean, preprocessing().mean)
  assert best.preprocessing.crop == 28 and best.preprocessing.random_crop is True


def test_runs_that_cannot_be_used_are_told(tmp_path):
  with pytest.raises(UserError, match='holds no run'):
    load_workdir(tmp_path)
  run = write_run(tmp_path / 'run', digits_config(), random_variables('digits', 7, 28))
  path = run / 'preprocessing.npz'
  whole = path.read_bytes()
  path.unlink()
  with pytest.raises(UserError, match='preprocessing.npz is missing'):
    load_workdir(run)
  for damage in (whole[:100], b'', pickled()):
    path.write_bytes(damage)
    with pytest.raises(UserError, match='preprocessing.npz is damaged'):
      load_workdir(run)
  shutil.rmtree(run / 'checkpoints')
  with pytest.raises(UserError, match='no last checkpoint yet'):
    load_workdir(run)


def pickled():
  """An .npz that would run code if it were trusted."""
  buffer = io.BytesIO()
  fields = (field.name for field in dataclasses.fields(preprocessing()))
  np.savez(buffer, **{name: np.array([print], dtype=object) for name in fields})
  return buffer.getvalue()


# The command.


def test_command_tells_classes_and_names_broken_files(workdir, photos, tmp_path):
  folder, files = photos
  broken = tmp_path / 'broken.png'
  broken.write_bytes(files[0].read_bytes()[:100])
  absent = tmp_path / 'absent\udcff.png'  # a byte that is no UTF-8
  found = run(
    'alexnet_jax.predict',
    f'--workdir={workdir}',
    *files[:2],
    broken,
    absent,
    '--top=3',
    f'--json={tmp_path / "found.json"}',
    f'--figure={tmp_path / "found.png"}',
  )
  assert found.returncode == 0, found.stderr
  for name in ('broken.png', 'absent\\udcff.png'):
    assert f'{tmp_path / name} cannot be read' in found.stderr
  assert '4 images, of which 2 cannot be read' in found.stdout
  saved = json.loads((tmp_path / 'found.json').read_text())
  expected = Predictor(workdir)(files[:2], top=3)
  for image, prediction in zip(saved['images'], expected, strict=False):
    assert image['file'] == prediction.name and image['true_class'] == 'ant'
    assert [x['class'] for x in image['predictions']] == list(prediction.classes)
    shares = [x['probability'] for x in image['predictions']]
    np.testing.assert_allclose(shares, prediction.probabilities, rtol=1e-3)
    assert f'{prediction.classes[0]}' in found.stdout and f'{shares[0]:.2%}' in found.stdout
  assert [x['file'] for x in saved['images'] if 'error' in x] == [str(broken), str(absent)]
  wrong = np.mean([prediction.classes[0] != 'ant' for prediction in expected])
  assert saved['top1_error'] == wrong and f'top-1 error {wrong:.2%}' in found.stdout
  with Image.open(tmp_path / 'found.png') as figure:
    assert min(figure.size) > 300


def test_command_reads_lists_and_writes_features(workdir, photos, tmp_path):
  folder, files = photos
  path, names = tmp_path / 'features.npz', tmp_path / 'names.txt'
  names.write_text(''.join(f'the {name}\n' for name in CLASSES))
  found = run(
    'alexnet_jax.predict',
    f'--workdir={workdir}',
    '-',
    '--features=pool3',
    f'--npz={path}',
    f'--classes={names}',
    '--json=-',
    stdin=f'{files[3]}\n\n{folder / "bee"}\n',
  )
  assert found.returncode == 0, found.stderr
  listed = [files[3], *files[5:]]
  told = json.loads(found.stdout)['images']
  assert [x['file'] for x in told] == list(map(str, listed))
  with np.load(path, allow_pickle=False) as saved:
    assert saved['names'].tolist() == list(map(str, listed))
    assert saved['features'].shape == (6, 3, 3, 64) and saved['features'].dtype == np.float32
    (expected,) = Predictor(workdir)(listed[:1], features='pool3')
    np.testing.assert_allclose(saved['features'][0], expected.features, rtol=1e-3, atol=1e-4)
  assert [x['class'] for x in told[0]['predictions']] == [f'the {x}' for x in expected.classes]


@pytest.mark.slow
def test_command_finds_neighbors(workdir, photos, tmp_path):
  folder, files = photos
  found = run(
    'alexnet_jax.predict',
    f'--workdir={workdir}',
    files[0],
    '--neighbors=2',
    f'--gallery={folder}',
    f'--json={tmp_path / "found.json"}',
    f'--figure={tmp_path / "found.png"}',
  )
  assert found.returncode == 0, found.stderr
  saved = json.loads((tmp_path / 'found.json').read_text())
  assert saved['layer'] == 'relu4'
  features = np.stack([x.features for x in Predictor(workdir)(files, features='relu4')])
  distances = np.linalg.norm(features - features[0], axis=1)
  nearest = np.argsort(distances)[1:3]
  (image,) = saved['images']
  assert [x['file'] for x in image['neighbors']] == [str(files[i]) for i in nearest]
  got = [x['distance'] for x in image['neighbors']]
  np.testing.assert_allclose(got, distances[nearest], rtol=1e-3)
  for i in nearest:
    assert str(files[i]) in found.stdout
  assert (tmp_path / 'found.png').stat().st_size > 1000


@pytest.mark.parametrize(
  'words, told',
  [
    (['a.png'], 'either --workdir=RUN or --weights=FILE'),
    (['--workdir=absent'], 'no images'),
    (['--workdir=absent', '.'], 'absent does not exist: give'),
    (['--workdir=absent', '--neighbors=3', '.'], '--gallery=FOLDER'),
    (['--workdir=absent', '--npz=a.npz', '.'], '--features=LAYER'),
    (['--workdir=run', 'nothing.png'], 'none of 1 can be read'),
  ],
)
def test_mistakes_are_told_in_one_line(words, told, tmp_path, workdir):
  (tmp_path / 'run').symlink_to(workdir)
  write_photos(tmp_path, 1)
  assert told in error_line(run('alexnet_jax.predict', *words, folder=tmp_path))
