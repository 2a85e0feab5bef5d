"""Every config builds; every mistake in one is told in one line, with exit code 2."""

import re

import jax
import numpy as np
import pytest
from helpers.commands import ROOT, get_config, run

from alexnet_jax import config as configs
from alexnet_jax.data.store import Split, Store
from alexnet_jax.errors import UserError
from alexnet_jax.model import layers
from alexnet_jax.model.nets import NETS
from alexnet_jax.train.experiment import make_experiment
from alexnet_jax.train.step import make_train_step


def variants_of(file):
  """The variants that a config names when it is asked for one that it does not have."""
  try:
    get_config(f'{file}:none of these')
  except ValueError as error:
    _, _, known = str(error).partition('choose one of ')
    return known.split(', ')
  return []


NAMES = [
  'cats_vs_dogs',
  'cifar10_adam',
  'cifar10_bn',
  'cifar10_bn:short',
  'digits',
  'folder:/images',
  'cifar10',
  *(f'cifar10:{variant}' for variant in variants_of('cifar10')),
  'imagenet',
  *(f'imagenet:{variant}' for variant in variants_of('imagenet')),
]


def test_no_config_is_left_out():
  files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  # finetune is complete with weights only: see test_finetune.
  assert {name.partition(':')[0] for name in NAMES} | {'finetune'} == files
  assert {'80sec', '19pct', '18pct', '13pct', '11pct'} <= set(variants_of('cifar10'))
  assert {'paper', 'auto', 'caffe', 'owt', 'bn'} <= set(variants_of('imagenet'))


def store_of(config):
  """The facts of a made-up data set, without its images."""
  side, classes = config.data.image_size, config.data.num_classes or 3
  split = Split(np.zeros((1000, 1, 1, 3), np.uint8), np.zeros(1000, np.int32))
  return Store(
    None,
    tuple(map(str, range(classes))),
    split,
    split,
    np.zeros((side, side, 3), np.float32),
    np.ones(3),
    np.eye(3),
    {},
  )


@pytest.mark.parametrize('name', NAMES)
def test_the_config_builds_a_run(name):
  config = get_config(name)
  configs.validate(config)
  assert configs.to_json(configs.from_json(configs.to_json(config))) == configs.to_json(config)
  experiment = make_experiment(config, store_of(config), None)
  side = config.data.image_size
  batch = {
    'image': jax.ShapeDtypeStruct((config.batch_size, side, side, 3), np.uint8),
    'label': jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    'position': jax.ShapeDtypeStruct((config.batch_size,), np.int32),
  }
  state = jax.eval_shape(experiment.initial_state)
  after, metrics = jax.eval_shape(
    make_train_step(experiment.model, experiment.recipe, None), state, batch
  )
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert {metric.shape for metric in metrics.values()} == {()}
  table = NETS[config.model.net](len(experiment.classes))
  shape = (config.input.crop, config.input.crop, 3)
  assert sum(x.size for x in jax.tree.leaves(state.params)) == layers.count_parameters(table, shape)


@pytest.mark.parametrize('path', configs.FIELDS)
def test_the_field_is_read_somewhere(path):
  sources = [
    file.read_text() for file in (ROOT / 'alexnet_jax').rglob('*.py') if file.name != 'config.py'
  ]
  name = path.rpartition('.')[2]
  assert any(re.search(rf'\.{name}\b', source) for source in sources)


# Values.


WRONG = [
  ('seed', -1),
  ('seed', 2**31),
  ('epochs', 0.0),
  ('epochs', float('nan')),
  ('epochs', float('inf')),
  ('batch_size', 0),
  ('grad_accum_steps', 0),
  ('steps_per_call', 0),
  ('model.net', 'alexnet'),
  ('model.compute_dtype', 'float16'),
  ('model.ghost_batch', -1),
  ('data.source', 'imagenet'),
  ('data.image_size', 4),
  ('data.resize', 'squash'),
  ('data.validation_fraction', 0.0),
  ('data.validation_fraction', 1.0),
  ('data.unreadable', 'ignore'),
  ('data.num_classes', -1),
  ('data.train_examples', -1),
  ('data.synthetic_examples', 1),
  ('input.crop', 4),
  ('input.resize_to', -1),
  ('input.color_noise', -0.1),
  ('input.color_statistics', '2010'),
  ('input.normalization', 'std'),
  ('input.scale', 0.0),
  ('optimizer.name', 'sgd'),
  ('optimizer.learning_rate', 0.0),
  ('optimizer.learning_rate', float('inf')),
  ('optimizer.bias_lr_multiplier', 0.0),
  ('optimizer.momentum', 1.0),
  ('optimizer.beta2', 1.0),
  ('optimizer.epsilon', 0.0),
  ('optimizer.weight_decay', -0.1),
  ('optimizer.warmup_epochs', -1.0),
  ('optimizer.warmup_start', -1.0),
  ('optimizer.warmup_power', 0.0),
  ('optimizer.schedule.kind', 'linear'),
  ('optimizer.schedule.factor', 1.5),
  ('optimizer.schedule.levels', 0),
  ('optimizer.schedule.target_factor', 0.5),
  ('optimizer.schedule.milestones', (25.0, 20.0)),
  ('optimizer.schedule.milestones', (0.0,)),
  ('optimizer.schedule.milestones', ('25',)),
  ('optimizer.schedule.milestones', (float('inf'),)),
  ('optimizer.schedule.milestones', (float('nan'),)),
  ('optimizer.schedule.patience', 0),
  ('optimizer.bias_schedule.kind', 'plateau'),
  ('eval.every_epochs', 0.0),
  ('eval.batch_size', 0),
  ('eval.views', 5),
  ('eval.final_views', 0),
  ('checkpoint.every_epochs', 0.0),
  ('checkpoint.max_to_keep', 0),
  ('guard.max_nonfinite_steps', 0),
  ('log.every_steps', 0),
]


@pytest.mark.parametrize('path, value', WRONG)
def test_a_value_that_is_not_allowed_is_named(path, value):
  config = configs.default()
  config.update_from_flattened_dict({path: value})
  with pytest.raises(UserError) as error:
    configs.validate(config)
  message = str(error.value)
  assert message.startswith(f'config.{path}={value!r}: must be ')
  assert '\n' not in message


def test_the_defaults_are_allowed():
  configs.validate(configs.default())


@pytest.mark.parametrize(
  'change',
  [
    lambda c: setattr(c, 'epochs', '90'),
    lambda c: setattr(c, 'batch_size', 1.5),
    lambda c: setattr(c.model, 'nets', 'paper'),
    lambda c: setattr(c.model, 'net', 3),
  ],
)
def test_other_names_and_types_are_refused_at_once(change):
  with pytest.raises((AttributeError, KeyError, TypeError)):
    change(configs.default())


# Combinations.


def changed(name, **changes):
  config = get_config(name)
  for path, value in changes.items():
    *sections, field = path.split('__')
    section = config
    for part in sections:
      section = section[part]
    section[field] = value
  return config


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('imagenet', {'input__crop': 257}, 'input.crop=257.*larger than the images.*256'),
    ('imagenet', {'input__resize_to': 128}, 'input.resize_to=128.*at least data.image_size=256'),
    ('imagenet', {'input__crop': 256}, 'eval.final_views=10.*views are the same.*use 1'),
    ('cifar10:80sec', {'eval__views': 9}, 'eval.views=9.*views are the same'),
    ('imagenet', {'input__crop': 16}, 'net=krizhevsky2012 with input.crop=16: layer pool2'),
    ('imagenet', {'model__ghost_batch': 8}, 'ghost_batch=8.*no batch normalization'),
    ('imagenet:bn', {'grad_accum_steps': 2}, 'grad_accum_steps=2.*set model.ghost_batch'),
    ('imagenet', {'data__synthetic_examples': 9}, 'synthetic_examples=9.*source=synthetic'),
    (
      'imagenet',
      {'optimizer__layer_weight_decay': {'fc9': 1.0}},
      "layer_weight_decay: no layer 'fc9'.*conv1, conv2, .*fc8",
    ),
    ('imagenet', {'optimizer__layer_weight_decay': {'pool1': 1.0}}, "no layer 'pool1'"),
    ('imagenet', {'optimizer__layer_weight_decay': {'fc8': -1.0}}, 'layer_weight_decay.fc8=-1.0'),
    ('imagenet', {'optimizer__layer_weight_decay': {'fc8': float('nan')}}, 'decay.fc8=nan'),
    ('imagenet', {'optimizer__layer_weight_decay': {'fc8': 'a'}}, "decay.fc8='a'"),
    ('imagenet', {'optimizer__layer_lr_factors': {'conv9': ((1.0, 0.1),)}}, "no layer 'conv9'"),
    ('imagenet', {'optimizer__layer_lr_factors': {'conv1/w': ((1.0, 0.1),)}}, "no layer 'conv1/w'"),
    ('imagenet', {'optimizer__warmup_power': 2.0}, 'warmup_power=2.*warmup_epochs above 0'),
    *(
      ('imagenet', {'optimizer__layer_lr_factors': {'conv1': wrong}}, 'layer_lr_factors.conv1=')
      for wrong in (((2.0, 0.1), (1.0, 0.0)), ((2.0, -0.1),), ((2.0, float('inf')),), (2.0, 0.1))
    ),
  ],
)
def test_a_combination_that_is_not_allowed_is_explained(name, changes, message):
  with pytest.raises(UserError, match=message) as error:
    configs.validate(changed(name, **changes))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, changes',
  [
    ('imagenet', {'grad_accum_steps': 4}),
    ('imagenet:bn', {'grad_accum_steps': 4, 'model__ghost_batch': 16}),
    ('imagenet:bn', {'model__ghost_batch': 16}),
    ('imagenet', {'epochs': 1.0}),  # a short trial of a long recipe
    ('imagenet', {'optimizer__schedule__kind': 'plateau'}),
    ('imagenet', {'data__source': 'synthetic', 'data__synthetic_examples': 64}),
  ],
)
def test_a_combination_that_makes_sense_is_allowed(name, changes):
  configs.validate(changed(name, **changes))


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


@pytest.mark.parametrize('path', [path for path in configs.FIELDS if path != 'epochs'])
def test_every_field_alters_the_run_unless_it_is_harmless(path):
  harmless = path.partition('.')[0] in ('log', 'checkpoint', 'guard') or path in (
    'data.dir',
    'data.store',
    'model.shard_dense',
  )
  assert configs.alters_run(path, 'old', 'new', configs.default()) != harmless


@pytest.mark.parametrize(
  'kind, bias_kind, epochs, alters',
  [
    ('step', 'same', 20.0, False),
    ('constant', 'same', 20.0, False),
    ('plateau', 'constant', 20.0, False),
    ('step', 'same', 5.0, True),
    ('cosine', 'same', 20.0, True),
    ('exponential', 'same', 20.0, True),
    ('polynomial', 'same', 20.0, True),
    ('step', 'exponential', 20.0, True),
  ],
)
def test_more_epochs_alter_only_a_schedule_that_spans_the_run(kind, bias_kind, epochs, alters):
  config = configs.default()
  config.optimizer.schedule.kind = kind
  config.optimizer.bias_schedule.kind = bias_kind
  assert configs.alters_run('epochs', 10.0, epochs, config) == alters


@pytest.mark.parametrize(
  'values',
  [
    {'epoch': 3.0},
    {'epochs': 'three'},
    {'optimizer': {'schedule': {'kinds': 'step'}}},
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
  'words, message',
  [
    (
      ['--config=configs/digits.py', '--config.optimizer.lerning_rate=1'],
      'config.optimizer.lerning_rate is not a field: did you mean config.optimizer.learning_rate?',
    ),
    (['--config=configs/digits.py', '--config.epochs=ten'], "--config.epochs=ten: .*'ten'"),
    (['--config=configs/digits.py', '--config.batch_size=1.5'], "--config.batch_size=1.5: .*'1.5'"),
    (['--config=configs/digits.py', '--config.epochs=0'], 'config.epochs=0.0: must be more than 0'),
    (
      ['--config=configs/cifar10.py:17pct'],
      "no variant '17pct': choose one of 80sec, 19pct, 18pct, 13pct, 11pct",
    ),
    (['--config=configs/cifar.py'], "'configs/cifar.py' does not exist: did you mean cifar10?"),
    (
      ['--config=configs/imagenet.py', "--config.optimizer.layer_weight_decay={'fc9': 1.0}"],
      "no layer 'fc9' with a kernel in this net; it has conv1, .*, fc8",
    ),
    (
      ['--config=configs/imagenet.py', '--config.optimizer.layer_lr_factors.conv9=((1.0,0.1),)'],
      "no entry for layer 'conv9' to change; give the whole table",
    ),
    (
      ['--config=configs/imagenet.py', '--config.optimizer.layer_lr_factors.fc8/bias=((1.0,0.1),)'],
      "'fc8/bias' cannot be set alone; give the whole table: .*layer_lr_factors=.*'fc8/bias'",
    ),
    ([], '--config is missing: give a config file, or the name of one: .*digits'),
    (['--config=configs/digits.py', '--workdir=gs://b/x'], '--workdir=gs://b/x: not a folder'),
    (['--config=configs/digits.py', '--workdir', 'gs://b/x'], '--workdir=gs://b/x: not a folder'),
    (
      ['--config=configs/digits.py', '--config.data.store=gs://b/x'],
      '--config.data.store=gs://b/x: not a folder',
    ),
    (['--config=configs/folder.py:gs://b/x'], '--config=gs://b/x: not a folder'),
    (['--config=configs/digits.py', '--workdir=~nobody-x/a'], 'there is no such home folder'),
    (
      ['--config=configs/digits.py', '--config.optimizer.lr=1'],
      'did you mean config.optimizer.learning_rate?',
    ),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message):
  done = run('alexnet_jax.main', '--dry_run', *words)
  assert done.returncode == 2
  assert done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and re.search(message, line), line
