"""AlexNet (2012) in JAX and Flax.

`AlexNet`, `nets` and `Predictor` are imported when they are first used: importing the package does
not import JAX, which reads its environment then.
"""

import importlib.metadata
import pkgutil

_EXPORTS = {
  'AlexNet': 'alexnet_jax.model.alexnet:AlexNet',
  'Predictor': 'alexnet_jax.inference.predictor:Predictor',
  'nets': 'alexnet_jax.model.nets',
}


def __getattr__(name: str):
  if name == '__version__':
    return importlib.metadata.version('alexnet_jax')
  if name in _EXPORTS:
    return pkgutil.resolve_name(_EXPORTS[name])
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_EXPORTS, '__version__'])
