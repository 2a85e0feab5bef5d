"""Commands and programs in README.md, CONTRIBUTING.md, docs/ and launch/README.md work.

A command is run, shortened where it would train or measure, with a net that has seen the digits
once; or refused for want of what is not here; or in NOT_RUN with the reason.  Others are failures.
"""

import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, ROOT, run
from test_import_order import PACKAGES

DOCUMENTS = ('README.md', 'CONTRIBUTING.md', 'launch/README.md') + tuple(
  f'docs/{path.name}' for path in sorted(ROOT.glob('docs/*.md'))
)
# How a command begins, the longest that fits: words to add there, and what it must be refused for.
RUN = {
  'python -m alexnet_jax.benchmark': ('nothing', "'nothing'"),  # after all flags have been read
  'python -m alexnet_jax.checkpoints': ('', ''),
  'python -m alexnet_jax.convert': ('', 'does not exist'),
  'python -m alexnet_jax.convert cifar10': ('', ''),
  'python -m alexnet_jax.convert runs/digits': ('', ''),
  'python -m alexnet_jax.diagnose': ('--batch_size=2 --overfit_steps=0', ''),
  'python -m alexnet_jax.evaluate': ('', ''),
  'python -m alexnet_jax.evaluate --weights=cifar10': ('', 'data set cifar10'),
  'python -m alexnet_jax.explore': ('', ''),
  'python -m alexnet_jax.main': ('--dry_run', ''),
  'python -m alexnet_jax.main --config=configs/digits.py': ('--config.epochs=1', ''),
  'python -m alexnet_jax.main --config=configs/finetune.py:digits': ('--config.epochs=6', ''),
  'python -m alexnet_jax.predict': ('', ''),
  'python -m alexnet_jax.prepare': ('', 'imagenet'),
  'python -m alexnet_jax.prepare --config=configs/cifar10.py': ('', 'cifar10'),
  'python -m alexnet_jax.prepare --config=configs/folder.py:/path/to/images': ('', ''),
  'python -m alexnet_jax.report': ('', 'is not a folder'),
  'python -m alexnet_jax.report runs/sweep': ('', ''),
  'python -m alexnet_jax.specialization': ('', 'holds no run'),
  'python -m alexnet_jax.specialization --workdir=runs/a': ('', ''),
  'python -m alexnet_jax.summarize': ('', ''),
  'python launch/local.py -n 1 --': ('--dry_run', ''),
  'python launch/local.py -n 2 --': ('--dry_run', ''),
  'python launch/sweep.py': ('--dry_run', ''),
  'launch/tpu_vm.sh': ('', ''),
}
NOT_RUN = {
  'export': 'sets what the commands after it find in their environment',
  'pip install': 'needs the network: .ci/run and test_install.py install the package',
  'python3 -m venv': 'needs the network: .ci/run makes environments',
  'python -m pytest': 'is what runs this: .ci/run has both lines',
  'sbatch': 'needs Slurm: test_slurm.py',
}


def blocks(document: str) -> list[tuple[str, str]]:
  """Language and text of each fenced block."""
  text = (ROOT / document).read_text(encoding='utf-8')
  return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
  """The commands of a bash block, without comments."""
  lines = text.replace('\\\n', ' ').splitlines()
  return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def rule(command: str) -> str:
  """The beginning in RUN or NOT_RUN that fits a command best."""
  fitting = [start for start in (*RUN, *NOT_RUN) if f'{command} '.startswith(start)]
  assert fitting, f'neither run nor given a reason: {command}'
  return max(fitting, key=len)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder in which the documents' commands find what they name."""
  place = tmp_path_factory.mktemp('documents')
  for path in ROOT.glob('[!.]*'):
    if path.name not in ('runs', 'digits'):
      (place / path.name).symlink_to(path)
  digits, *_ = (text for kind, text in blocks('docs/predict.md') if kind == 'python')
  subprocess.run([sys.executable, '-c', digits], cwd=place, check=True)
  (place / 'dogs-vs-cats/train').mkdir(parents=True)
  for name in ('cat.0', 'cat.1', 'dog.0', 'dog.1'):
    shutil.copy(place / 'digits/0/0000.png', place / f'dogs-vs-cats/train/{name}.png')
  trained = run('alexnet_jax.main', '--config=digits', '--config.epochs=1', folder=place)
  assert trained.returncode == 0, trained.stderr
  for copy in ('imagenette-bn', 'a', 'b', 'sweep/baseline/seed0'):
    shutil.copytree(place / 'runs/digits', place / 'runs' / copy)
  return place


def check(command: str, place, environment: dict[str, str]) -> None:
  """Runs a command as its rule says."""
  start = rule(command)
  added, refusal = RUN[start]
  words = shlex.split(f'{start} {added} {command.removeprefix(start)}')
  words = [word.replace('/path/to/images', str(place / 'digits')) for word in words]
  words = [word.replace('/path/to/dogs', str(place / 'dogs')) for word in words]
  words[0] = sys.executable if words[0] == 'python' else words[0]
  ended = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)
  said = f'{command}\n{ended.stdout}{ended.stderr}'
  assert ended.returncode == (2 if refusal else 0), said
  assert 'Traceback' not in ended.stderr, said
  assert refusal in ended.stderr.strip().splitlines()[-1] if refusal else True, said


def test_every_command_is_run_or_has_its_reason():
  every = [text for name in DOCUMENTS for kind, text in blocks(name) if kind == 'bash']
  found = {rule(command) for text in every for command in commands(text)}
  assert found == {*RUN, *NOT_RUN}  # and no rule is left over


def test_the_map_has_the_packages_in_their_order():
  lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
  assert len(lines) <= 130
  tree = '\n'.join(line for line in lines if line.startswith('    '))
  places = [re.search(rf'\b{name}(/|\.py|, |: )', tree).start() for name in PACKAGES]
  assert places == sorted(places)


def test_links_lead_to_files_and_headings():
  for document in DOCUMENTS:
    for link in re.findall(r'\]\((?!https?:)([^)]+)\)', (ROOT / document).read_text()):
      path, _, heading = link.partition('#')
      target = (ROOT / document).parent / path if path else ROOT / document
      assert target.exists(), f'{document}: {link}'
      headings = re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE) if heading else []
      names = [re.sub(r'[^\w -]', '', text.lower()).replace(' ', '-') for text in headings]
      assert not heading or heading in names, f'{document}: {link}'


def test_the_fidelity_map_names_tests_files_and_names_in_them_that_exist():
  text = (ROOT / 'docs/fidelity.md').read_text(encoding='utf-8')
  links = dict(re.findall(r'^\[([^\]]+)\]: (\S+)$', text, re.M))
  assert set(re.findall(r'\[(\w+\.py)\](?!:)', text)) == set(links)
  tests = re.findall(r'`(test_\w+\.py)::(test_\w+)`', text)
  assert len(tests) > 50 and text.count('::test_') == len(tests)
  named = [(ROOT / 'tests' / file, f'def {name}') for file, name in tests]
  for file, names in re.findall(r'\[(\w+\.py)\] ((?:`\w+`(?:, )?)+)', text):
    assert links[file].endswith(f'/{file}')
    named += [(ROOT / 'docs' / links[file], name) for name in re.findall(r'`(\w+)`', names)]
  assert len(named) > 100
  for path, name in named:
    assert re.search(rf'\b{name}\b', path.read_text()), f'{path} has no {name}'


@pytest.mark.slow
@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_and_programs_run(document, place, monkeypatch):
  monkeypatch.chdir(place)
  environment = ENVIRONMENT | {'DRY_RUN': '1'}  # of tpu_vm.sh
  for kind, text in blocks(document):
    if kind == 'bash':
      for command in commands(text):
        if command.startswith('export '):
          environment |= dict(word.split('=', 1) for word in shlex.split(command)[1:])
        elif rule(command) in RUN:
          check(command, place, environment)
    elif kind == 'python':
      program = types.ModuleType(document)
      program.images = np.zeros((1, 224, 224, 3), np.float32)
      program.views = np.zeros((2, 32, 32, 3), np.float32)
      exec(compile(text, document, 'exec'), vars(program))
