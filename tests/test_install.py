"""The package without a checkout: what a wheel holds, and the commands in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Made of a copy of the tree: setuptools writes beside what it reads."""
  folder = tmp_path_factory.mktemp('wheel')
  listed = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  ).stdout.split('\0')  # fmt: skip
  if listed == ['']:
    pytest.skip('needs a git checkout')
  for name in filter(None, listed):
    if (ROOT / name).is_file():
      (folder / 'tree' / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / 'tree' / name).write_bytes((ROOT / name).read_bytes())
  made = subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', folder, folder / 'tree'],
    capture_output=True,
    text=True,
  )
  if made.returncode:
    pytest.skip(f'no wheel can be made here: {made.stderr.splitlines()[-1]}')
  (path,) = folder.glob('*.whl')
  return path


def test_a_wheel_holds_the_package_and_the_configs(wheel):
  with zipfile.ZipFile(wheel) as archive:
    found = {name for name in archive.namelist() if '.dist-info/' not in name}
  package = {
    str(path.relative_to(ROOT))
    for path in (ROOT / 'alexnet_jax').rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  configs = {f'alexnet_jax/configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
  assert found == package | configs


def test_commands_work_in_an_empty_folder(wheel, tmp_path):
  installed, place = tmp_path / 'installed', tmp_path / 'place'
  place.mkdir()
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(installed)
  kept = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment = kept | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(installed)}

  def run(module, *words):
    done = subprocess.run(
      [sys.executable, '-m', f'alexnet_jax.{module}', *words],
      cwd=place, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  for name, net in (
    ('digits', 'digits'),
    ('configs/digits.py', 'digits'),
    ('cifar10:80sec', 'cifar_80sec'),
  ):
    assert f'net           {net}:' in run('main', f'--config={name}', '--dry_run')
  run('main', '--config', 'digits', '--config.epochs=1', '--config.data.train_examples=200')
  assert (place / 'runs/digits/results.json').exists()
  assert 'top1_error' in run('evaluate', '--workdir=runs/digits')
  Image.new('L', (8, 8)).save(place / 'a.png')
  assert '%' in run('predict', '--workdir=runs/digits', 'a.png')
  assert 'baseline' in run('report', 'runs')
