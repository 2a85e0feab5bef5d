"""What all commands share: the config flag, errors as one line, exit codes."""

import difflib
import functools
import hashlib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax import config as configs
from alexnet_jax import distributed
from alexnet_jax.errors import Diverged, Interrupted, UserError

# Sections whose keys are layer names, which depend on the config file.
_OPEN = ('optimizer.layer_weight_decay.', 'optimizer.layer_factors.')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, as FILE or FILE:VARIANT, such as configs/cifar10.py:18pct.'
)


def run(main: Callable[..., None], *, positional: bool = False) -> int:
  """Parses the flags, runs `main` and turns what goes wrong into one line and an exit code.

  With `positional`, `main` is given the list of words that are not flags; else there may be none.
  """
  code = 0
  logging.set_verbosity(logging.WARNING)
  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, _stop)

  def guarded(argv):
    nonlocal code
    if len(argv) > 1 and not positional:
      code = _fail(UserError(f'unknown argument {argv[1]!r}: flags look like --name=value'))
      return
    code = _guard(functools.partial(main, argv[1:]) if positional else main)

  try:
    app.run(guarded, flags_parser=_parse)
  except SystemExit as error:
    code = error.code if code == 0 and error.code is not None else code
  distributed.leave(code)
  return code


def read_config() -> tuple[ml_collections.ConfigDict, str]:
  """The validated config of the flags, and the name of the experiment.

  Returns:
    The config, and `<file>[-<variant>][-synthetic]`; a path as variant gives its last folder's name
    and a short hash.

  Raises:
    UserError: no --config, or a field that is wrong.
  """
  config = _CONFIG.value
  if config is None:
    known = ', '.join(sorted(map(str, Path('configs').glob('[a-z]*.py')))) or 'none in ./configs'
    raise UserError(f'--config is missing: give a config file ({known})')
  configs.validate(config)
  return config, experiment_name(flags.FLAGS['config'].config_filename, config.data.source)


def experiment_name(config_filename: str, source: str) -> str:
  """A short name for runs of `FILE[:VARIANT]`, fit for a folder."""
  file, _, variant = config_filename.partition(':')
  parts = [Path(file).stem]
  if os.sep in variant:
    path = os.path.abspath(os.path.expanduser(variant))
    parts += [os.path.basename(path), hashlib.sha256(path.encode()).hexdigest()[:6]]
  elif variant:
    parts.append(variant)
  if source == 'synthetic' and parts[-1] != 'synthetic':
    parts.append('synthetic')
  return '-'.join(parts)


def spoken() -> str:
  """The command as the user gave it."""
  module = sys.modules['__main__'].__spec__
  program = f'python -m {module.name}' if module else f'python {sys.argv[0]}'
  return f'{program} {shlex.join(sys.argv[1:])}'


def _stop(number, frame):
  """Ends a command where it is; training has its own way while there is a state to save."""
  del frame
  raise Interrupted(f'stopped by {signal.Signals(number).name}; the same command goes on')


def _guard(main: Callable[[], None]) -> int:
  try:
    main()
    return 0
  except (UserError, Diverged, Interrupted) as error:
    return _fail(error)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  except Exception as error:
    if not distributed.is_member():
      raise
    traceback.print_exc()
    return _fail(Interrupted(f'a process of the job failed ({error}); the same command goes on'))


def _fail(error) -> int:
  print(f'error: {error}' if not isinstance(error, Interrupted) else str(error), file=sys.stderr)
  return error.exit_code


def _parse(argv):
  """absl's parser, with its errors and those of the config in one line."""
  try:
    _check_config_words(argv)
    return flags.FLAGS(argv)
  except UserError as error:
    sys.exit(_fail(error))
  except Exception as error:  # whatever a config file may raise, however ml_collections wraps it
    text = str(error).strip()
    if isinstance(error, (AttributeError, KeyError)):
      _check_layer_words(argv, text)
    if 'Traceback' in text:  # its last line says it
      text = re.sub(r'^(\w+\.)*\w*(Error|Exception): ', '', text.splitlines()[-1])
    elif not isinstance(error, flags.Error):
      text = f'the config cannot be read: {type(error).__name__}: {text}'
    sys.exit(_fail(UserError(' '.join(text.split()))))


def _check_layer_words(argv, text: str) -> None:
  """Exits with advice if the error `text` is about a layer that the config does not mention."""
  for word in argv:
    section, _, layer = word.lstrip('-').partition('=')[0].rpartition('.')
    if f'{section}.'.removeprefix('config.') in _OPEN and layer in text:
      sys.exit(
        _fail(
          UserError(
            f'--{section}.{layer}: the config has no entry for layer {layer!r} to change; give the'
            f""" whole table: --{section}="{{'{layer}': ...}}\""""
          )
        )
      )


def _check_config_words(argv) -> None:
  """Raises UserError for a config file that is not there and for fields that do not exist."""
  words = [word.lstrip('-') for word in argv[1:] if word.startswith('-')]
  for word, following in zip(argv[1:], [*argv[2:], ''], strict=False):
    name, equals, value = word.lstrip('-').partition('=')
    if name == 'config' and word.startswith('-'):
      path = (value if equals else following).partition(':')[0]
      if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path('configs').glob('*.py')), 1, 0.5)
        hint = f'did you mean {near[0]}?' if near else 'the known ones are in configs/'
        raise UserError(f'config file {path!r} does not exist: {hint}')
  for word in words:
    name = word.partition('=')[0]
    path = name.removeprefix('no').removeprefix('config.')
    if not name.removeprefix('no').startswith('config.') or path.startswith(_OPEN):
      continue
    if path not in configs.FIELDS:
      near = difflib.get_close_matches(path, configs.FIELDS, 1, 0.5)
      hint = (
        f'did you mean config.{near[0]}?'
        if near
        else ('the fields are listed in alexnet_jax/config.py')
      )
      raise UserError(f'config.{path} is not a field: {hint}')
