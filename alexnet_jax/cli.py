"""What all commands share: --config and --ablation, errors as one line, exit codes."""

import contextlib
import hashlib
import importlib.util
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import ml_collections
from absl import app, flags, logging

from alexnet_jax import config as configs
from alexnet_jax import config_files, files
from alexnet_jax.errors import DiskFailed, Diverged, Interrupted, RunsFailed, UserError
from alexnet_jax.runtime import distributed

_KILLED = 130  # by SIGINT, as shells say it

_CONFIG = flags.DEFINE_string(
  'config',
  None,
  'Config, as FILE or FILE:VARIANT, such as configs/cifar10.py:18pct; --config.FIELD=VALUE changes'
  ' a field.',
)
_ABLATION = flags.DEFINE_multi_string(
  'ablation', [], 'Changes of the config by name, such as no_lrn or no_lrn,no_random_flip.'
)


def run(main: Callable[..., None], *, positional: bool = False, configured: bool = True) -> int:
  """Parses the flags, runs a command, and turns its exceptions into one line and an exit code.

  Args:
    main: the command.
    positional: whether `main` takes the list of arguments that are not flags.
    configured: whether the command takes --config and --ablation.

  Returns:
    The exit code, for `sys.exit`.
  """
  if importlib.util.find_spec('fcntl') is None:
    return _fail(UserError('this system has no fcntl: use Linux, macOS, or WSL'))
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  app.define_help_flags()
  for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      signal.signal(number, _stop)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):  # a terminal of another encoding shows what it can
      stream.reconfigure(errors='replace' if stream is sys.stdout else 'backslashreplace')

  def parse_and_run():
    arguments = _parse()
    if arguments and not positional:
      raise UserError(f'unknown argument {arguments[0]!r}: flags look like --name=value')
    if not configured:
      refuse_config('this command takes none')
    main(*([arguments] if positional else []))

  code = _guard(parse_and_run)
  if code in (Interrupted.exit_code, _KILLED) or distributed.is_member():
    _leave(code)
  return code


def _leave(code: int) -> None:
  """Ends the process at once.

  A normal exit would wait for threads which a signal may have left waiting for ever, and for the
  other processes of a job, which may be waiting for this one in a collective.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def read_config(workdir: str | None = None) -> tuple[ml_collections.ConfigDict, str]:
  """The validated config of the flags, and the name of the run.

  Args:
    workdir: folder of the run; runs/<name> if None.

  Returns:
    The config with its ablations, and `<file>[-<variant>][-synthetic][-width0.5][-<ablation>]`; a
    path as variant gives its last folder's name and a short hash.

  Raises:
    UserError: no --config, a field that is wrong or does nothing, or an ablation that does not fit.
  """
  if not _CONFIG.value:
    names = ', '.join(config_files.names())
    raise UserError(f'--config is missing: give a config file, or the name of one: {names}')
  config, typed = config_files.parse(config_words())
  width = [] if config.model.width == 1 else [f'width{config.model.width:g}']
  name = '-'.join([run_name(_CONFIG.value, config.data.source), *width, *_ablations()])
  if configs.fields_from_weights(config):
    from alexnet_jax.weights import initial  # it imports jax, which most configs do not need here

    initial.fill_from_weights(config, Path(workdir or Path('runs', name)))
  return config_files.apply_ablations(config, _ablations(), typed), name


def config_words() -> list[str]:
  """The words of the command line that make the config: --config=FILE and --config.FIELD=VALUE."""
  return [f'--config={_CONFIG.value}', *_config_fields()]


def _config_fields() -> list[str]:
  return [word for word in sys.argv[1:] if word.startswith(('--config.', '--noconfig.'))]


def _ablations() -> list[str]:
  return [name for names in _ABLATION.value for name in names.split(',') if name]


def refuse_config(reason: str) -> None:
  """Raises UserError if --config or --ablation is given, which for this reason would do nothing."""
  for name, value in (('config', _CONFIG.value), ('ablation', ','.join(_ablations()))):
    if value:
      raise UserError(f'--{name}={value}: {reason}; leave it out')


def run_name(config_filename: str, source: str) -> str:
  """A short name for runs of `FILE[:VARIANT]`, fit for a folder."""
  file, _, variant = config_filename.partition(':')
  parts = [Path(file).stem]
  if os.sep in variant:
    path = os.path.abspath(files.expand(variant, '--config'))
    parts += [os.path.basename(path), hashlib.sha256(path.encode()).hexdigest()[:6]]
  elif variant:
    parts.append(variant)
  if source == 'synthetic' and parts[-1] != 'synthetic':
    parts.append('synthetic')
  return '-'.join(parts)


def command_line() -> str:
  """The command as the user typed it."""
  module = sys.modules['__main__'].__spec__
  program = (
    f'python -m {module.name.removesuffix(".__main__")}' if module else f'python {sys.argv[0]}'
  )
  return f'{program} {shlex.join(sys.argv[1:])}'


def _stop(number, frame):
  """Handles signals outside the training loop; there `StopSignal` does."""
  del frame
  raise Interrupted(f'stopped by {signal.Signals(number).name}; the same command resumes it')


def _guard(main: Callable[[], None]) -> int:
  try:
    main()
    return 0
  except (UserError, DiskFailed, Diverged, Interrupted, RunsFailed) as error:
    return _fail(error)
  except SystemExit as error:  # of --help, or of a config
    return _fail(UserError(error.code)) if isinstance(error.code, str) else error.code or 0
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return _KILLED
  except BrokenPipeError:  # the reader has seen enough, such as `head`
    # Python flushes at exit, which must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception as error:
    if not distributed.is_member():
      raise
    traceback.print_exc()
    return _fail(Interrupted(f'a process of the job failed ({error}); the same command resumes it'))


def _fail(error) -> int:
  with contextlib.suppress(OSError):  # the terminal may be gone
    print(f'error: {error}' if not isinstance(error, Interrupted) else str(error), file=sys.stderr)
  return error.exit_code


def _parse() -> list[str]:
  """Parses all flags but --config.FIELD (see `config_files.parse`); returns the other arguments.

  Raises:
    UserError: a flag that is not known or without its value, or a path that is not on a disk.
  """
  sys.argv[1:] = ['--help' if word == '-h' else _expanded(word) for word in sys.argv[1:]]
  fields = _config_fields()
  try:
    others = flags.FLAGS([word for word in sys.argv if word not in fields])[1:]
  except SystemExit:  # --help, after which absl ends with 1
    sys.exit(0)
  except flags.Error as error:
    raise UserError(' '.join(str(error).split())) from None
  if fields and not _CONFIG.value:
    raise UserError(f'{fields[0]}: --config=FILE is missing, the config that has this field')
  return others


def _expanded(word: str) -> str:
  """A word of the command line with `~` expanded in its paths; raises like `files.expand`."""
  flag, equals, value = word.partition('=') if word.startswith('-') else ('', '', word)
  given = value.split(',')
  paths = [files.expand(path, flag or 'path') for path in given]
  expanded = [str(new) if old[:1] == '~' else old for old, new in zip(given, paths, strict=True)]
  return f'{flag}{equals}{",".join(expanded)}'
