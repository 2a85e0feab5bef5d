"""Error rates of a trained run, of an ensemble of runs, or of imported weights.

  python -m alexnet_jax.evaluate --workdir=runs/imagenet --views=10
  python -m alexnet_jax.evaluate --ensemble=runs/a,runs/b --views=10
  python -m alexnet_jax.evaluate --weights=alexnet.pth --config=configs/imagenet.py:owt
  python -m alexnet_jax.evaluate --weights=cifar10 --config=configs/cifar10.py --top5=cifar10/a.npz

Every validation image is counted exactly once, on any number of devices.  The softmax probabilities
of views, and of the members of an ensemble, are averaged.  Prints each error with its 95 % Wilson
interval and the worst classes; writes `predictions-*.npz` (label, probabilities) and
`evaluation-*.json` into the folder of the (first) run.

--weights takes what `alexnet_jax.convert` takes and evaluates it on the data of --config with its
own preprocessing; the files go to runs/<name of the weights>.

--top5 writes the five most probable classes of every image as an .npz, and `labels.npz` beside it.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.jax_setup import set_up_jax

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_ENSEMBLE = flags.DEFINE_list('ensemble', [], 'Folders of runs whose probabilities are averaged.')
_VIEWS = flags.DEFINE_enum(
  'views', None, ['1', '9', '10'], 'Views averaged per image; the config decides if not given.'
)
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which saved state.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'Weights to evaluate on the data of --config.')
_NET = flags.DEFINE_enum(
  'net', None, ['caffe', 'caffenet'], 'Which one, where --weights does not say it.'
)
_TOP5 = flags.DEFINE_string(
  'top5', None, 'File (.npz) for the five best classes of each image; a folder for each data set.'
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'auto', ['auto', 'on', 'off'], 'Whether this is one process of a job of several.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data is now, if it has moved.')


def main() -> None:
  top5 = Path(_TOP5.value) if _TOP5.value else None
  if top5 and (top5.suffix != '.npz' or top5.name == 'labels.npz'):
    raise UserError(f'--top5={top5}: give an .npz, with another name than the labels.npz beside it')
  if [bool(flag.value) for flag in (_WORKDIR, _ENSEMBLE, _WEIGHTS)].count(True) != 1:
    raise UserError(
      'give one of --workdir=RUN, --ensemble=RUN,RUN,... and --weights=FILE (with --config=...)'
    )
  if _WEIGHTS.value:
    config, _ = cli.read_config()
  else:
    cli.refuse_config('a run is evaluated with its own config')
  set_up_jax(_DISTRIBUTED.value)
  from alexnet_jax.inference import error_rates

  views = int(_VIEWS.value) if _VIEWS.value else None
  if _WEIGHTS.value:
    config.data.dir = _DATA_DIR.value or config.data.dir
    path = Path(_WEIGHTS.value)
    folder, saved_as = Path('runs', path.stem), 'imported'
    nets = [error_rates.evaluate_weights(path, config, _NET.value, _CHECKPOINT.value, views)]
  elif len(_ENSEMBLE.value) > 1:
    workdirs = [Path(name) for name in _ENSEMBLE.value]
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
      raise UserError(f'--ensemble={",".join(_ENSEMBLE.value)}: has a run more than once')
    folder, saved_as = workdirs[0], f'ensemble-{_CHECKPOINT.value}'
    nets = error_rates.evaluate_ensemble(workdirs, _CHECKPOINT.value, views, _DATA_DIR.value)
  else:
    folder, saved_as = Path(_WORKDIR.value or _ENSEMBLE.value[0]), _CHECKPOINT.value
    nets = [error_rates.evaluate_run(folder, saved_as, views, _DATA_DIR.value)]
  error_rates.print_and_save(nets, folder, saved_as, cli.command_line(), top5)


if __name__ == '__main__':
  sys.exit(cli.run(main))
