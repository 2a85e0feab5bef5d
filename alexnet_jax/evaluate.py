"""Error rates of a trained run.

  python -m alexnet_jax.evaluate --workdir=runs/cifar10 --views=9
  python -m alexnet_jax.evaluate --workdir=runs/imagenet --views=10 --checkpoint=best

Every held-out image is counted exactly once, on any number of devices.
"""

from pathlib import Path
import sys

from absl import flags

from alexnet_jax import command
from alexnet_jax.errors import UserError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
_VIEWS = flags.DEFINE_enum(
    'views', None, ['1', '9', '10'], 'Views averaged an image; the config decides if not given.')
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which saved state.')


def main() -> None:
  from alexnet_jax import config as configs
  from alexnet_jax.data.preparation import prepare_store
  from alexnet_jax.results import files
  from alexnet_jax.results.console import results_table
  from alexnet_jax.train.evaluation import VIEW_NAMES, Evaluator
  from alexnet_jax.train.experiment import make_experiment
  from alexnet_jax.train.parallel import AXIS, Devices
  from alexnet_jax.train.workdir import CONFIG, environment, read_json

  workdir = Path(_WORKDIR.value)
  if not (workdir / CONFIG).exists():
    raise UserError(f'--workdir={workdir} holds no run: there is no {CONFIG}')
  config = configs.from_json(read_json(workdir / CONFIG))
  views = int(_VIEWS.value) if _VIEWS.value else config.eval.final_views
  config.eval.final_views = views
  configs.validate(config)

  devices = Devices()
  devices.check_batch('eval.batch_size', config.eval.batch_size)
  store = prepare_store(config.data)
  experiment = make_experiment(config, store, AXIS)
  state, step = experiment.restored(workdir, _CHECKPOINT.value)
  results = Evaluator(experiment, store.eval, devices)(
      devices.replicate(state.params), devices.replicate(state.batch_stats), views)

  name = VIEW_NAMES[views].replace(' ', '_')
  count = results.pop('count')
  epoch = experiment.calendar.epoch_of(step)
  results = {f'{name}/{key}': value for key, value in results.items()}
  results |= {'epochs': epoch, 'workdir': str(workdir)}
  print(f'{_CHECKPOINT.value} checkpoint, step {step:,}, {count:,} images')
  print(results_table(results))
  files.write_json(workdir / f'evaluation-{_CHECKPOINT.value}-{views}.json', {
      **results, 'evaluated_images': count, 'command': command.spoken(), **environment(devices)})


if __name__ == '__main__':
  sys.exit(command.run(main))
