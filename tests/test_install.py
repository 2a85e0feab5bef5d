"""The package without a checkout: what a wheel holds, and the commands in an empty folder."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.commands import ROOT, run
from PIL import Image


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path):
  # Made of a copy of the tree: setuptools writes beside what it reads.
  tree, installed, place = (tmp_path / name for name in ('tree', 'installed', 'place'))
  for folder in ('alexnet_jax', 'configs'):
    shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('LICENSE', 'README.md', 'pyproject.toml', 'setup.cfg', 'setup.py'):
    shutil.copy(ROOT / name, tree)
  expected = {str(path.relative_to(tree)) for path in tree.rglob('alexnet_jax/**/*.*')}
  expected |= {f'alexnet_jax/configs/{path.name}' for path in (tree / 'configs').glob('*.py')}
  made = subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', tmp_path, tree],
    capture_output=True,
    text=True,
  )
  if made.returncode:
    pytest.skip(f'no wheel can be made here: {made.stderr.splitlines()[-1]}')
  (wheel,) = tmp_path.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    assert {name for name in archive.namelist() if '.dist-info/' not in name} == expected
    archive.extractall(installed)
  place.mkdir()

  def output(module, *words):
    done = run(f'alexnet_jax.{module}', *words, folder=place, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    return done.stdout

  for name, net in (
    ('digits', 'digits'),
    ('configs/digits.py', 'digits'),
    ('cifar10:80sec', 'cifar_80sec'),
  ):
    assert f'net           {net}:' in output('main', f'--config={name}', '--dry_run')
  output('main', '--config', 'digits', '--config.epochs=1', '--config.data.train_examples=200')
  assert (place / 'runs/digits/results.json').exists()
  assert 'top1_error' in output('evaluate', '--workdir=runs/digits')
  Image.new('L', (8, 8)).save(place / 'a.png')
  assert '%' in output('predict', '--workdir=runs/digits', 'a.png')
  # The net in the package.
  lines = output('predict', '--weights=cifar10', '--top=10', 'a.png').splitlines()
  classes = [line.split()[0] for line in lines if '%' in line]
  assert len(classes) == 10
  output('convert', 'cifar10', 'copy.npz')
  for name in classes:
    for number in range(2):
      (place / 'photos' / name).mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (40, 32), (20 * number, 90, 200)).save(
        place / 'photos' / name / f'{number}.png'
      )
  folder = ['--config.data.source=folder', '--config.data.dir=photos']
  assert 'over 10 images' in output('evaluate', '--weights=cifar10', '--config=cifar10', *folder)
  output(
    'main',
    '--config=finetune:photos',
    '--config.weights=cifar10',
    '--config.epochs=2',
    '--config.batch_size=2',
  )
  assert (place / 'runs/finetune-photos/results.json').exists()
  assert 'baseline' in output('report', 'runs')
