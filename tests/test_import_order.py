"""Each package imports only from those above it in README's map, without circles."""

import ast
import graphlib
from pathlib import Path

import alexnet_jax
from alexnet_jax.run.folder import RunFolder

ROOT = Path(alexnet_jax.__file__).parent
PACKAGES = (  # the order of README's map
  'errors files terminal runtime data model config config_files results run weights'
  ' train inference explorer sweep benchmarks cli'
).split()


def imports() -> dict[str, set[str]]:
  """{module: modules that it imports, anywhere in its text}, without the package's name."""
  modules = {'.'.join(p.relative_to(ROOT).with_suffix('').parts): p for p in ROOT.rglob('*.py')}
  graph = {}
  for name, path in modules.items():
    full = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Import):
        full |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        assert not node.level, f'{name}: relative imports are not seen by this test'
        full |= {f'{node.module}.{alias.name}' for alias in node.names}
    full = {word.removeprefix('alexnet_jax.') for word in full if word.startswith('alexnet_jax.')}
    packages = {word for word in full if f'{word}.__init__' in modules}
    graph[name] = packages | {w if w in modules else w.rpartition('.')[0] for w in full - packages}
  return graph


def test_imports_point_one_way():
  rank = {package: place for place, package in enumerate(PACKAGES)}
  for module, imported in imports().items():
    here = module.split('.')[0]
    for package in {name.split('.')[0] for name in imported} - {here, ''}:
      # All other modules are commands, which nothing imports.
      assert package in rank, f'{module} imports {package}, a command'
      assert rank[package] < rank.get(here, len(PACKAGES)), f'{module} imports {package} below'


def test_no_module_imports_itself_through_others():
  list(graphlib.TopologicalSorter(imports()).static_order())  # raises CycleError


def test_only_run_spells_the_names_of_its_files():
  """Every other module asks `RunFolder` for the files of a run."""
  names = {path.name for path in vars(RunFolder('run')).values() if path.name != 'run'}
  starts = (
    'predictions-',
    'evaluation-',
    'events.out',
    'checkpoints/',
    'figures/',
    'center view',
    'nine view',
    'ten view',
  )
  everywhere = {*ROOT.rglob('*.py'), *(ROOT.parent / 'launch').glob('*.py')}
  for path in sorted(everywhere - set((ROOT / 'run').iterdir())):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))
    # 'figures' and 'checkpoints' are words elsewhere, but not as a part of a path.
    parts = {getattr(n.right, 'value', '') for n in nodes if isinstance(n, ast.BinOp)}
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    found = names & parts | {t for t in texts if t.startswith(starts)}
    found |= {t for t in names & texts if '.' in t[1:]}
    assert not found, f'{path} spells {found}'
