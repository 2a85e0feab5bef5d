"""docs/alexnet.ipynb runs from top to bottom, and says so when a version does not fit."""

import importlib.metadata
import re
import subprocess

import nbformat
import pytest
from helpers.commands import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / 'docs' / 'alexnet.ipynb'


def read():
  return nbformat.read(NOTEBOOK, as_version=4)


def cells(notebook):
  """Text and printed lines of the cells of code, in order; pictures are named by their kind."""
  found = []
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      shown = (output.get('text') or ' '.join(output.get('data', ())) for output in cell.outputs)
      found.append((cell.source, ''.join(shown)))
  return found


def test_outputs_are_kept_and_small():
  assert NOTEBOOK.stat().st_size < 300_000
  assert all(shown for _, shown in cells(read()))
  pictures = [shown for _, shown in cells(read()) if 'image/png' in shown]
  assert len(pictures) == 3


def first_cell(monkeypatch, **versions):
  """Runs the first cell where `versions` are installed; returns what it stops with."""
  real = importlib.metadata.version
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: versions.get(name) or real(name))
  monkeypatch.setattr(subprocess, 'run', lambda *command, **options: None)  # pip changes nothing
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # the cell sets it
  monkeypatch.chdir(NOTEBOOK.parent)
  with pytest.raises(SystemExit) as stopped:
    exec(cells(read())[0][0], {})
  return stopped.value.code


def test_the_first_cell_names_a_version_that_does_not_fit(monkeypatch):
  line = first_cell(monkeypatch, jax='0.4.35')
  assert re.fullmatch(r'jax 0\.4\.35 does not fit, jax>=\S+ is needed', line)


def test_the_first_cell_asks_for_a_restart_when_another_version_is_in_use(monkeypatch):
  line = first_cell(monkeypatch, numpy='99.0')
  assert re.fullmatch(r'numpy \S+ is in use, 99\.0 installed: restart the kernel', line)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom():
  notebook = read()
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = []
  client = NotebookClient(
    notebook, timeout=1200, resources={'metadata': {'path': str(NOTEBOOK.parent)}}
  )
  client.execute()  # raises what a cell raises
  versions, table, widths, training, *_, steps = (shown for _, shown in cells(notebook))
  assert 'all versions fit' in versions
  assert '60,965,224' in table and '724,406,816' in table
  assert re.findall(r'is (\d+) wide', widths) == ['55', '54', '55', '56', '55']
  assert float(re.search(r'(\S+)% of the validation digits', training)[1]) <= 1.5
  report = ''.join(
    each['data']['text/markdown']
    for cell in notebook.cells
    for each in cell.get('outputs', ())
    if 'text/markdown' in each.get('data', ())
  )
  assert len(re.findall(r'^\| (?:baseline|init_01|tanh) \| 3 \|', report, re.MULTILINE)) == 3
  found = re.findall(r'^(\d) x .* loss (\S+), gradient norm (\S+)$', steps, re.MULTILINE)
  one, eight = ([(float(x), float(y)) for n, x, y in found if n == count] for count in '18')
  assert len(one) == len(eight) == 3
  assert eight == [pytest.approx(pair, rel=1e-4) for pair in one]
