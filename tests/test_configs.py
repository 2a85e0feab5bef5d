"""Every config plans and builds; every field has an effect, or is refused in one line."""

import re
import shutil
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from helpers.commands import ROOT, error_line, get_config, run
from helpers.tiny_data import write_images

from alexnet_jax import config as configs
from alexnet_jax import config_files
from alexnet_jax.data import preparation
from alexnet_jax.data.store import Split, Store
from alexnet_jax.errors import Diverged, UserError
from alexnet_jax.model import layers, onednn
from alexnet_jax.model.nets import NETS
from alexnet_jax.run import claim
from alexnet_jax.run.predictions import SplitProbabilities
from alexnet_jax.runtime.jax_setup import resume_note
from alexnet_jax.train import modes, periodic_actions, plan
from alexnet_jax.train.devices import Devices, check_batch_size
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.train.grad_accum import accumulate
from alexnet_jax.train.step import make_compute_gradients, make_train_step
from alexnet_jax.train.throughput import IntervalMetrics
from alexnet_jax.weights.initial import weights_of

# ml_collections' loader of config files.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')


VARIANTS = {  # finetune is complete with weights only: see test_finetune
  'cats_vs_dogs': '',
  'cifar10': '80sec 19pct 18pct 13pct 11pct',
  'cifar10_adam': '',
  'cifar10_bn': '',
  'digits': '',
  'folder': '/images',
  'imagenet': 'paper auto caffe caffenet owt one_tower conv6 bn bn_8k bn_16k bn_32k modern',
  'imagenette': 'krizhevsky2012 one_tower bn owt modern',
}
NAMES = [file for file in VARIANTS if file != 'folder'] + [
  f'{file}:{variant}' for file, variants in VARIANTS.items() for variant in variants.split()
]


def test_no_config_and_no_variant_is_left_out():
  assert {*VARIANTS, 'finetune'} == {path.stem for path in (ROOT / 'configs').glob('*.py')}
  for file in ('cifar10', 'imagenet', 'imagenette'):
    with pytest.raises(ValueError, match='has no variant') as error:
      get_config(f'{file}:none of these')
    _, _, known = str(error.value).partition('choose one of ')
    assert known.split(', ') == VARIANTS[file].split()


def typed(name, *fields, ablations=()):
  """The config of `--config=name --config.FIELD ...`, all checks passed."""
  words = [f'--config={name}', *(f'--config.{field}' for field in fields)]
  config, paths = config_files.parse(words)
  return config_files.apply_ablations(config, ablations, paths)


def store_of(config):
  """The facts of a made-up data set, without its images."""
  side, classes = config.data.image_size, config.data.num_classes or 3
  split = Split(np.zeros((1000, 1, 1, 3), np.uint8), np.zeros(1000, np.int32))
  mean = np.linspace(0, 255, side * side * 3, dtype=np.float32).reshape(side, side, 3)
  names = tuple(map(str, range(classes)))
  return Store(None, names, split, split, mean, np.ones(3), np.eye(3), {})


def plan_of(config):
  return '\n'.join(plan.lines(config, config.data.num_classes or 3, 1000, 100))


def train_step_of(config, experiment):
  """The train step, and a state and a batch without values."""
  side = config.data.image_size
  shapes = {'image': (side, side, 3), 'label': (), 'position': ()}
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.batch_size, *shape), np.uint8 if name == 'image' else np.int32
    )
    for name, shape in shapes.items()
  }
  compute_gradients = make_compute_gradients(
    experiment.model.clone(axis_name=None), experiment.recipe
  )
  if config.grad_accum_steps > 1:
    compute_gradients = accumulate(compute_gradients, config.grad_accum_steps)
  step = make_train_step(experiment.recipe, compute_gradients, pmean=lambda tree: tree)
  return step, jax.eval_shape(experiment.initial_state), batch


@pytest.mark.parametrize('name', NAMES)
def test_the_config_builds_a_run(name):
  config = get_config(name)
  configs.validate(config)
  assert configs.to_json(configs.from_json(configs.to_json(config))) == configs.to_json(config)
  experiment = make_experiment(config, store_of(config), 'cpu')
  step, state, batch = train_step_of(config, experiment)
  after, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert {metric.shape for metric in metrics.values()} == {()}
  table = NETS[config.model.net](len(experiment.classes))
  shape = (config.input.crop, config.input.crop, 3)
  assert sum(x.size for x in jax.tree.leaves(state.params)) == layers.count_parameters(table, shape)


@pytest.mark.parametrize('source', ['tfds', 'folder', 'digits', 'synthetic'])
@pytest.mark.parametrize('name', NAMES)
def test_a_config_plans_with_any_source_and_length(name, source):
  assert 'learning rate' in plan_of(typed(name, f'data.source={source}', 'epochs=1'))


def test_the_plan_shows_nothing_that_does_nothing():
  assert 'warm-up' in plan_of(typed('imagenet:bn_8k'))
  assert 'warm-up' not in plan_of(typed('imagenet:bn_8k', 'optimizer.warmup_epochs=0'))
  config = typed('imagenet', 'data.source=synthetic')
  raw = plan_of(config)
  config.data.encoding = 'jpeg'  # as a config file may have it
  assert plan_of(config) == raw


@pytest.mark.parametrize('dtype, notes', [('float32', 0), ('bfloat16', 1)])
def test_bfloat16_on_a_cpu_is_said_to_be_slower(dtype, notes):
  experiment = SimpleNamespace(config=typed('digits', f'model.compute_dtype={dtype}'), table=())
  assert len(modes.check(experiment, None, Devices())) == notes


# Every field: another value, and what the digits config needs for the field to be used.

FOLDER = 'data.source=folder data.dir=images data.num_classes=0 data.unreadable=skip'
TFDS = 'data.source=tfds data.name=cifar10 data.eval_split=test data.dir=absent'
ANOTHER = f"""
  seed=1 epochs=2 batch_size=32 grad_accum_steps=2 steps_per_call=4 label_smoothing=0.1
  ema_decay=0.9 deterministic=true weights=absent model.net=cifar_18pct model.ablations=('no_lrn',)
  model.width=0.5
  model.compute_dtype=bfloat16 model.onednn=on model.shard_dense=true data.source=synthetic
  data.image_size=40 data.num_classes=7 data.train_examples=100 data.validation_fraction=0.5
  input.crop=24 input.resize_to=40
  input.random_crop=false input.random_flip=true input.color_noise=0.1 input.scale=2
  input.normalization=mean_image optimizer.name=larc optimizer.learning_rate=0.1
  optimizer.base_batch_size=128 optimizer.bias_lr_multiplier=1 optimizer.momentum=0.8
  optimizer.weight_decay=0.1 optimizer.decay_biases=true optimizer.warmup_epochs=2
  optimizer.layer_weight_decay={{'fc5':0.1}} optimizer.layer_lr_factors={{'fc5':((1.0,0.1),)}}
  optimizer.warmup_start=0.01 optimizer.warmup_power=2 optimizer.schedule.kind=constant
  optimizer.bias_schedule.kind=constant eval.every_epochs=2 eval.batch_size=12 eval.views=9
  eval.final_views=10 checkpoint.every_epochs=2 checkpoint.max_to_keep=3 log.every_steps=7
  guard.max_nonfinite_steps=3 guard.flat_steps=3 log.tensorboard=false
{TFDS}: data.name=mnist data.train_split=train[:50%] data.eval_split=test[:50%]
{FOLDER}: data.dir=absent data.store=elsewhere data.resize=warp data.encoding=jpeg
  data.unreadable=error
{FOLDER} data.encoding=jpeg: data.jpeg_quality=70
data.source=synthetic: data.synthetic_examples=64
model.net=cifar_bn: model.ghost_batch=16
input.color_noise=0.1: input.color_noise_epochs=3 input.color_statistics=data
optimizer.name=adam: optimizer.beta2=0.99 optimizer.epsilon=0.1
optimizer.name=larc: optimizer.trust_coefficient=0.1
optimizer.schedule.kind=plateau: optimizer.schedule.patience=2
""" + ''.join(
  f"""{schedule}.kind=step: {schedule}.milestones=(2.0,)
{schedule}.kind=step {schedule}.milestones=(1.0,): {schedule}.factor=0.5
{schedule}.kind=exponential: {schedule}.levels=3 {schedule}.target_factor=10
{schedule}.kind=polynomial: {schedule}.power=1
"""
  for schedule in ('optimizer.schedule', 'optimizer.bias_schedule')
)


def others():
  """{field: (what else the config needs for it to be used, another value)}."""
  found = {}
  for line in re.sub(r'\n  ', ' ', ANOTHER).splitlines():
    uses, _, changes = line.rpartition(': ') if ': ' in line else ('', '', line)
    found |= {change.partition('=')[0]: (uses.split(), change) for change in changes.split()}
  return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of images, one of them broken."""
  folder = tmp_path_factory.mktemp('data')
  for seed, name in enumerate(('ant', 'bee')):
    write_images(folder / 'images' / name, 6, seed=seed)
  (folder / 'images' / 'ant' / 'broken.png').write_bytes(b'broken')
  return folder


@pytest.mark.parametrize('path', configs.FIELDS)
def test_every_field_changes_something(path, folder, monkeypatch):
  monkeypatch.chdir(folder)
  monkeypatch.setattr(onednn, 'available', lambda: True)
  uses, change = others()[path]
  before, after = typed('digits', *uses), typed('digits', *uses, change)
  assert any(x != y for x, y in zip(observed(before, path), observed(after, path), strict=False))


@pytest.mark.parametrize('path', ['data.resize', 'eval.views', 'optimizer.momentum'])
def test_the_same_config_shows_the_same(path, folder, monkeypatch):
  monkeypatch.chdir(folder)
  config = typed('digits', *others()[path][0])
  assert list(observed(config, path)) == list(observed(config, path))


def observed(config, path):
  """What can be seen of a config, the cheapest first."""
  if path.startswith('data.'):
    yield preparation.store_path(config.data) if config.data.source in ('folder', 'tfds') else None
    yield stored(config)
    return
  yield plan_of(config)
  if path.startswith(('eval.', 'checkpoint.', 'guard.', 'log.')):
    yield from watched(config)
    return
  yield resume_note('gpu', config.deterministic)
  try:
    weights_of(config)
  except UserError as error:
    yield str(error)
    return
  yield 'no weights'
  experiment = make_experiment(config, store_of(config), 'cpu')
  yield experiment.plateau, modes.check(experiment, store_of(config).train, Devices())
  step, state, batch = train_step_of(config, experiment)
  program = jax.make_jaxpr(step)(state, batch)
  yield re.sub('0x[0-9a-f]+', '', str(program)), [np.asarray(x).tobytes() for x in program.consts]


def stored(config):
  if config.data.source == 'tfds':
    return preparation.sizes(config.data, None)
  try:
    store = preparation.prepare_store(config.data, workers=1)
  except UserError as error:
    return str(error)
  images = np.asarray(store.train.images)
  if store.path:
    shutil.rmtree(store.path)
  return store.meta, len(store.train), images.tobytes()


def watched(config):
  """What the loop is to do, without a step: when, with how many views, and what it warns of."""
  try:
    check_batch_size('eval.batch_size', config.eval.batch_size, Devices())
  except UserError as error:
    yield str(error)
  experiment = make_experiment(config, store_of(config), 'cpu')
  console, metrics = mock.Mock(), mock.Mock(return_value=[])
  with (
    mock.patch.object(periodic_actions, 'Evaluator') as evaluator,
    mock.patch.object(periodic_actions, 'MetricWriter') as writer,
    mock.patch.object(periodic_actions, 'read_metrics', metrics),
  ):
    run = periodic_actions.PeriodicActions(
      experiment, store_of(config), Devices(), mock.Mock(), None, console, 0
    )
  yield run.evaluation_steps, run.save_steps, [run.is_due(step) for step in range(200)]
  yield writer.call_args.kwargs['tensorboard']
  found = SplitProbabilities(np.zeros(1, np.int32), np.full((1, 10), 0.1))
  evaluator.return_value.predictions.return_value = found
  kernels = {experiment.table[0].name: {'kernel': np.zeros(1)}}
  with mock.patch.object(periodic_actions, 'write_first_layer'):
    run.evaluate(1, mock.Mock(eval_params=kernels))
  run.final_predictions(mock.Mock())
  yield [call.args[2] for call in evaluator.return_value.mock_calls if len(call.args) > 2]
  throughput = mock.Mock()
  throughput.take.return_value = IntervalMetrics({'loss': np.log(10)}, 0.0, 5, {})
  run.stop = mock.Mock()
  console.reset_mock()
  try:
    run.log(5, throughput)
    yield console.message.mock_calls
  except Diverged as error:
    yield str(error)


# Fields that would do nothing.


@pytest.mark.parametrize('path', [path for path, (uses, _) in others().items() if uses])
def test_a_field_that_would_do_nothing_is_refused(path):
  said = f'^config.{path}=.*: only used with .*; leave it out, or change that too$'
  with pytest.raises(UserError, match=said):
    typed('digits', others()[path][1])


@pytest.mark.parametrize(
  'name, words, reason',
  [
    ('imagenet', 'optimizer.beta2=0.99', '0.99: only used with optimizer.name=adam; leave it out'),
    ('cifar10_bn', 'optimizer.decay_biases=true', 'only used with a weight decay above 0'),
    ('cifar10', 'input.random_crop=true', 'only used with input.crop below the size of the images'),
    ('digits', 'data.jpeg_quality=80 data.encoding=jpeg', 'only used with data.source=tfds or f'),
    ('imagenet:modern', 'model.onednn=off', 'only used with model.compute_dtype=float32'),
  ],
)
def test_the_reason_is_given(name, words, reason):
  with pytest.raises(UserError, match=f'^config.{words.partition("=")[0]}=.*{reason}'):
    typed(name, *words.split())


def test_what_an_ablation_undoes_is_refused():
  with pytest.raises(UserError, match='noise_epochs=3.0: --ablation=no_color_noise sets it to 0.0'):
    typed('imagenet', 'input.color_noise_epochs=3', ablations=['no_color_noise'])
  assert typed('imagenet', ablations=['no_color_noise']).input.color_noise == 0


# Values and combinations.


WRONG = """seed=-1 seed=2147483648 epochs=0.0 epochs=nan epochs=inf batch_size=0 grad_accum_steps=0
  steps_per_call=0 model.net='alexnet' model.compute_dtype='float16' model.ghost_batch=-1
  model.width=0.75
  data.source='imagenet' data.image_size=4 data.resize='squash' data.validation_fraction=0.0
  data.validation_fraction=1.0 data.unreadable='ignore' data.encoding='png' data.jpeg_quality=0
  data.num_classes=-1 data.train_examples=-1 data.synthetic_examples=1 input.crop=4
  input.resize_to=-1 input.color_noise=-0.1 input.color_statistics='2010' input.scale=0.0
  input.normalization='std' optimizer.name='sgd' optimizer.learning_rate=0.0
  optimizer.learning_rate=inf optimizer.bias_lr_multiplier=0.0 optimizer.momentum=1.0
  optimizer.beta2=1.0 optimizer.epsilon=0.0 optimizer.weight_decay=-0.1 optimizer.warmup_epochs=-1.0
  optimizer.warmup_start=-1.0 optimizer.warmup_power=0.0 optimizer.schedule.kind='linear'
  optimizer.schedule.factor=1.5 optimizer.schedule.levels=0 optimizer.schedule.target_factor=0.5
  optimizer.schedule.milestones=(25.0,20.0) optimizer.schedule.milestones=(0.0,)
  optimizer.schedule.milestones=('25',) optimizer.schedule.milestones=(inf,)
  optimizer.schedule.milestones=(nan,) optimizer.schedule.patience=0
  optimizer.bias_schedule.kind='plateau' optimizer.layer_weight_decay={'fc8':-1.0}
  optimizer.layer_weight_decay={'fc8':nan} optimizer.layer_weight_decay={'fc8':'a'}
  optimizer.layer_lr_factors={'conv1':((2.0,0.1),(1.0,0.0))} eval.views=5 eval.final_views=0
  optimizer.layer_lr_factors={'conv1':((2.0,-0.1),)} eval.every_epochs=0.0 eval.batch_size=0
  optimizer.layer_lr_factors={'conv1':((2.0,inf),)} optimizer.layer_lr_factors={'conv1':(2.0,0.1)}
  checkpoint.every_epochs=0.0 checkpoint.max_to_keep=0 guard.max_nonfinite_steps=0
  log.every_steps=0"""


@pytest.mark.parametrize('change', WRONG.split())
def test_a_value_that_is_not_allowed_is_named(change):
  path, _, text = change.partition('=')
  value = eval(text, {'nan': float('nan'), 'inf': float('inf')})
  config = configs.default()
  configs.validate(config)
  config.update_from_flattened_dict({path: value})
  with pytest.raises(UserError) as error:
    configs.validate(config)
  message = str(error.value)
  assert message.startswith(f'config.{path}={value!r}: must be ')
  assert '\n' not in message


@pytest.mark.parametrize(
  'name, words, message',
  [
    ('imagenet', 'input.crop=257', 'input.crop=257.*larger than the images.*256'),
    ('imagenet', 'input.resize_to=128', 'input.resize_to=128.*at least data.image_size=256'),
    ('imagenet', 'input.crop=256', 'eval.final_views=10.*views are the same.*use 1'),
    ('cifar10:80sec', 'eval.views=9', 'eval.views=9.*views are the same'),
    ('imagenet', 'input.crop=16', 'net=krizhevsky2012 with input.crop=16: layer pool2'),
    ('imagenet:bn', 'grad_accum_steps=2', 'grad_accum_steps=2.*set model.ghost_batch'),
    ('imagenet', "optimizer.layer_weight_decay={'fc9':1.0}", "no layer 'fc9'.*conv1, .*fc8"),
    ('imagenet', "optimizer.layer_weight_decay={'pool1':1.0}", "no layer 'pool1'"),
    ('imagenet', "optimizer.layer_lr_factors={'conv9':((1.0,0.1),)}", "no layer 'conv9'"),
    ('imagenet', "optimizer.layer_lr_factors={'conv1/w':((1.0,0.1),)}", "no layer 'conv1/w'"),
    ('imagenet', 'grad_accum_steps=4', ''),
    ('imagenet:bn', 'grad_accum_steps=4 model.ghost_batch=16', ''),
    ('imagenet:bn', 'model.ghost_batch=16', ''),
    ('imagenet:bn_8k', 'model.net=krizhevsky2012', ''),  # which leaves the file's ghost_batch idle
    ('imagenet', 'optimizer.schedule.kind=plateau', ''),
    ('imagenet', 'data.source=synthetic data.synthetic_examples=64', ''),
  ],
)
def test_combinations(name, words, message):
  if not message:
    typed(name, *words.split())
    return
  with pytest.raises(UserError, match=message) as error:
    typed(name, *words.split())
  assert '\n' not in str(error.value)


# Resuming.


def test_diff_names_what_differs():
  config = get_config('cifar10')
  old = configs.to_json(config)
  assert configs.diff(old, old) == {}
  config.log.every_steps = 7
  config.optimizer.schedule.milestones = (1.0, 2.0)
  config.optimizer.layer_weight_decay = {'conv1': 0.5}
  assert configs.diff(old, configs.to_json(config)) == {
    'log.every_steps': (50, 7),
    'optimizer.schedule.milestones': ([120.0, 130.0], [1.0, 2.0]),
    'optimizer.layer_weight_decay.fc10': (1.0, None),
    'optimizer.layer_weight_decay.conv1': (None, 0.5),
  }


def test_which_changes_alter_a_run():
  config = typed('imagenet')
  assert not claim.alters_run('log.every_steps', 1, 2, config)
  assert claim.alters_run('optimizer.momentum', 0.9, 0.8, config)
  assert claim.alters_run('optimizer.layer_lr_factors.conv1', (), None, config)
  assert not claim.alters_run('optimizer.beta2', 0.9, 0.8, config)


@pytest.mark.parametrize(
  'field, reason',
  [
    ('optimizer.lr', 'is not a field: did you mean optimizer.learning_rate?'),
    ('log.every_steps', 'may change without it'),
    ('data.train_split', 'cannot change: checkpoints count steps'),
    ('optimizer.beta2', 'only used with optimizer.name=adam'),
  ],
)
def test_a_change_that_need_not_or_cannot_be_allowed(field, reason):
  with pytest.raises(UserError, match=re.escape(f'--allow_change={field}') + f'.*{reason}'):
    claim.check_allowed(typed('imagenet'), ['epochs', 'optimizer.layer_weight_decay', field])


@pytest.mark.parametrize('kind', ['step', 'constant', 'plateau', 'cosine', 'exponential'])
@pytest.mark.parametrize('bias_kind', ['same', 'constant', 'polynomial'])
def test_more_epochs_alter_only_a_schedule_that_spans_the_run(kind, bias_kind):
  config = configs.default()
  config.optimizer.schedule.kind, config.optimizer.bias_schedule.kind = kind, bias_kind
  spans = kind in ('cosine', 'exponential') or bias_kind == 'polynomial'
  assert claim.alters_run('epochs', 10.0, 20.0, config) == spans
  assert claim.alters_run('epochs', 10.0, 5.0, config)


@pytest.mark.parametrize(
  'values',
  [
    {'epoch': 3.0},
    {'epochs': 'three'},
    {'optimizer': {'layer_lr_factors': {'conv9': [[1.0, 0.1]]}}},
    {'batch_size': 0},
  ],
)
def test_a_stored_config_that_does_not_fit_is_refused(values):
  with pytest.raises(UserError) as error:
    configs.from_json(values)
  assert '\n' not in str(error.value)


# The command line.


@pytest.mark.parametrize(
  'name, field, message',
  [
    ('digits', 'optimizer.lr=1', '^config.optimizer.lr is not a field: did you mean optimizer.lea'),
    ('digits', 'epochs=ten', "--config.epochs=ten: .*'ten'"),
    ('digits', 'batch_size=1.5', "--config.batch_size=1.5: .*'1.5'"),
    ('digits', 'epochs=0', 'config.epochs=0.0: must be more than 0'),
    ('cifar10:17pct', '', "no variant '17pct': choose one of 80sec, 19pct, 18pct, 13pct, 11pct"),
    ('configs/cifar.py', '', "'configs/cifar.py' does not exist: did you mean cifar10?"),
    ('imagenet', 'optimizer.layer_lr_factors.fc8=((1.0,0.1),)', 'one by one; give the whole table'),
  ],
)
def test_a_mistake_in_the_config_is_one_line(name, field, message):
  with pytest.raises(UserError, match=message) as error:
    typed(name, *field.split())
  assert '\n' not in str(error.value)


def test_fields_may_stand_before_the_config():
  words = '--config.epochs=3 --config.seed=4 --noconfig.log.tensorboard --config=digits'
  config, paths = config_files.parse(words.split())
  assert paths == ['epochs', 'seed', 'log.tensorboard']
  assert (config.epochs, config.seed, config.log.tensorboard) == (3.0, 4, False)


@pytest.mark.slow
@pytest.mark.parametrize(
  'words, message',
  [
    (['--config.epochs=1'], '--config.epochs=1: --config=FILE is missing'),
    ([], '--config is missing: give a config file, or the name of one: .*digits'),
    (['--config=digits', '--config.optimizer.beta2=0.9'], 'config.optimizer.beta2=0.9: only used'),
    (['--config=digits', '--workdir=gs://b/x'], '--workdir=gs://b/x: not a folder'),
    (['--config=digits', '--workdir', 'gs://b/x'], 'path=gs://b/x: not a folder'),
    (['--config.epochs', '3', '--config', 'digits'], "unknown argument '3': flags look like --na"),
    (['--config=digits', '--config.data.store=gs://b/x'], '--config.data.store=gs://b/x: not a'),
    (['--config=configs/folder.py:gs://b/x'], '--config=gs://b/x: not a folder'),
    (['--config=digits', '--workdir=~nobody-x/a'], 'there is no such home folder'),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message):
  done = run('alexnet_jax.main', '--dry_run', *words)
  assert done.stdout == '' and len(done.stderr.splitlines()) == 1
  assert re.search(message, error_line(done))
