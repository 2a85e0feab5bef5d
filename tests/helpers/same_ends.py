"""What tests of launchers run, and compare: the ends of two runs."""

import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.run.checkpoint import Checkpoints

FLAGS = [
  '--config=configs/digits.py',
  '--config.epochs=10',
  '--config.data.train_examples=300',
  '--config.checkpoint.every_epochs=0.4',
  '--config.eval.every_epochs=5',
  '--config.log.every_steps=1',
  '--config.log.tensorboard=False',
]


def final(workdir) -> dict[str, np.ndarray]:
  """Step and leaves of the last checkpoint by name, and the predictions."""
  checkpoints = Checkpoints(workdir / 'checkpoints', primary=False)
  step = checkpoints.steps()[-1]
  checkpoints.close()
  with ocp.StandardCheckpointer() as reader:
    pending = [('', reader.restore(workdir / 'checkpoints/last' / str(step) / 'state'))]
  found = {'step': np.array(step)}
  while pending:
    name, value = pending.pop()
    if isinstance(value, dict):
      pending += [(f'{name}/{key}', below) for key, below in value.items()]
    else:
      found[name] = np.asarray(value)
  with np.load(workdir / 'predictions-last-1.npz') as predictions:
    return found | {name: predictions[name] for name in predictions.files}


def assert_same_ends(one, other) -> None:
  """The same step, parameters, optimizer and predictions, to the bit."""
  expected, actual = final(one), final(other)
  assert expected.keys() == actual.keys() and len(expected) > 10
  for name, value in expected.items():
    assert np.array_equal(value, actual[name]), name
