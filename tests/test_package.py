"""What `import alexnet_jax` gives, and what it leaves alone."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import alexnet_jax
from alexnet_jax.model import nets
from alexnet_jax.model.alexnet import AlexNet

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_no_jax():
  code = (
    'import sys, alexnet_jax\n'
    'assert {"AlexNet", "Predictor", "nets", "__version__"} <= set(dir(alexnet_jax))\n'
    'assert alexnet_jax.__version__\n'
    'print(*{"jax", "flax", "numpy"} & set(sys.modules))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '\n'


def test_exports():
  assert alexnet_jax.AlexNet is AlexNet and alexnet_jax.nets is nets
  assert alexnet_jax.Predictor.__name__ == 'Predictor'
  settings = configparser.ConfigParser()
  settings.read(ROOT / 'setup.cfg')
  assert alexnet_jax.__version__ == settings['metadata']['version']
  assert f'version: {alexnet_jax.__version__}' in (ROOT / 'CITATION.cff').read_text().splitlines()
  with pytest.raises(AttributeError, match="'alexnet_jax' has no attribute 'Net'"):
    _ = alexnet_jax.Net
