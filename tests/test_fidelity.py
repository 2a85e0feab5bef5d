"""docs/fidelity.md names nothing that does not exist: tests, files, and names in files."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'fidelity.md').read_text()
LINKS = dict(re.findall(r'^\[([^\]]+)\]: (\S+)$', TEXT, re.M))
TABLE = re.compile(r'^\||^\[[^\]]+\]: ')


def test_every_test_that_is_named_exists():
  named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', TEXT)
  assert len(named) > 50
  assert TEXT.count('::test_') == len(named)
  for file, name in sorted(set(named)):
    source = (ROOT / 'tests' / file).read_text()
    assert re.search(rf'^def {name}\(', source, re.M), f'{file} has no {name}'


def test_every_file_that_is_named_exists():
  used = set(re.findall(r'\[(\w+\.py)\](?!:)', TEXT))
  assert used == set(LINKS)
  for name, target in LINKS.items():
    assert (ROOT / 'docs' / target).is_file() and target.endswith(f'/{name}'), target


def test_every_name_given_for_a_file_is_in_it():
  pairs = re.findall(r'\[(\w+\.py)\] ((?:`\w+`(?:, )?)+)', TEXT)
  assert len(pairs) > 50
  for file, names in pairs:
    source = (ROOT / 'docs' / LINKS[file]).read_text()
    for name in re.findall(r'`(\w+)`', names):
      assert re.search(rf'\b{name}\b', source), f'{file} has no {name}'


def test_lines_outside_tables_are_short():
  long = [line for line in TEXT.splitlines() if len(line) > 110 and not TABLE.match(line)]
  assert not long
