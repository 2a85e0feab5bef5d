"""Which operations a training step spends its time in, from a trace of a few steps.

The profiler names operations as the compiled program does, such as `multiply_bitcast_fusion.1`.
The program's text says what each was made of: `metadata={op_name="jit(step)/.../conv1/..."}`.
"""

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

STEPS = 5

# `  ROOT %name = f32[8]{0} opcode(%operand, ...), calls=%computation, metadata={op_name="..."}`
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%(?P<name>\S+) = .*?[\]})] (?P<opcode>[a-z][\w-]*)\(')
_OPERANDS = re.compile(r'%([\w.-]+)')
_CALLS = re.compile(r'calls=%([\w.-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%(?P<name>\S+) \(.*\{$')
# Their time is that of the operations inside, which the trace has as well.
_CONTAINERS = ('while', 'call', 'conditional')
# What JAX and Flax wrap around the names of layers, such as jit(step) or AlexNet._run.
_WRAPPING = re.compile(r'\(|^AlexNet|^(while|body|cond|closed_call|branch_.*)$')


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of the compiled program.

  Attributes:
    name: in the compiled program and in the trace.
    meaning: layer and primitive, and `backward` where it belongs to the backward pass.
    share: of the time between the first operation and the last.
    milliseconds: a step.
    times: it ran in a step.
  """

  name: str
  meaning: str
  share: float
  milliseconds: float
  times: float


def trace(run: Callable[[int], int], hlo: str, folder: Path) -> list[Operation]:
  """Traces a few steps and writes the trace to the folder, for Perfetto or TensorBoard.

  Args:
    run: takes so many steps, to their end; has run before.
    hlo: text of the compiled program.
    folder: made if need be.

  Returns:
    All operations, dearest first.
  """
  import jax  # here, because who only reads what was traced does without

  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # Python's calls would be most of the trace
  before = set(folder.rglob('*.trace.json.gz'))
  with jax.profiler.trace(str(folder), profiler_options=options):
    run(STEPS)
  (file,) = set(folder.rglob('*.trace.json.gz')) - before
  with gzip.open(file, 'rt', encoding='utf-8') as text:
    events = json.load(text)['traceEvents']
  return operations(events, hlo, STEPS)


def operations(events: list[dict], hlo: str, steps: int) -> list[Operation]:
  """The operations of a trace, dearest first.

  Where several are under way at once, each is given an equal part of that time.
  """
  meanings, opcodes = read_program(hlo)
  spans = [span for span in _spans(events) if opcodes.get(span[2]) not in _CONTAINERS]
  if not spans:
    return []
  whole = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
  times = collections.Counter(name for _, _, name in spans)
  return [
    Operation(
      name, meanings.get(name, ''), spent / whole, spent / 1000 / steps, times[name] / steps
    )
    for name, spent in _shared_time(spans).most_common()
  ]


def _spans(events: list[dict]) -> list[tuple[float, float, str]]:
  """(begin, end, operation) in microseconds.

  A CPU hands work to a pool of threads: the event of an operation may be over when the work has
  been handed over, and an event `end: ...` tells when it is done.
  """
  ends = collections.defaultdict(list)
  begun = collections.defaultdict(list)
  for event in events:
    if event.get('ph') != 'X':
      continue
    if event['name'].startswith('end: '):
      ends[_operation(event['name'].removeprefix('end: '))].append(event['ts'])
    elif 'hlo_op' in event.get('args', {}):
      name = _operation(event['args']['hlo_op'])
      begun[name].append((event['ts'], event['ts'] + event.get('dur', 0)))
  spans = []
  for name, found in begun.items():
    found.sort()
    nexts = [begin for begin, _ in found[1:]] + [float('inf')]
    for (begin, end), following in zip(found, nexts, strict=True):
      done = [ts for ts in ends[name] if begin <= ts < following]
      spans.append((begin, max([end, *done]), name))
  return spans


def _operation(traced: str) -> str:
  """The operation's name in the program; a trace puts the target of a call of oneDNN behind it."""
  return traced.partition('__onednn$')[0]


def _shared_time(spans: list[tuple[float, float, str]]) -> collections.Counter:
  """Microseconds of each operation; an instant belongs in equal parts to all under way."""
  moments = sorted(
    [(begin, 1, name) for begin, _, name in spans] + [(end, -1, name) for _, end, name in spans]
  )
  active, spent, before = collections.Counter(), collections.Counter(), 0.0
  for moment, change, name in moments:
    if busy := active.total():
      for running, count in active.items():
        spent[running] += (moment - before) * count / busy
    active[name] += change
    if not active[name]:
      del active[name]
    before = moment
  return spent


def read_program(hlo: str) -> tuple[dict[str, str], dict[str, str]]:
  """What the operations of a compiled program mean, and their opcodes, by name.

  One without metadata means what most of the operations fused into it do, or else what the first
  that uses its result does.
  """
  op_names, opcodes, calls, users = {}, {}, {}, collections.defaultdict(list)
  members, computation = collections.defaultdict(collections.Counter), ''
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      computation = header['name']
    if not (found := _INSTRUCTION.match(line)):
      continue
    name = found['name']
    opcodes[name] = found['opcode']
    if op_name := _OP_NAME.search(line):
      op_names[name] = op_name[1]
      members[computation][op_name[1]] += 1
    if called := _CALLS.search(line):
      calls[name] = called[1]
    for operand in _OPERANDS.findall(line[found.end() :].partition('metadata=')[0]):
      users[operand].append(name)

  def op_name_of(name: str, depth: int = 3) -> str:
    if name in op_names:
      return op_names[name]
    if fused := members[calls.get(name, '')]:
      return fused.most_common(1)[0][0]
    named = (op_name_of(user, depth - 1) for user in users.get(name, ()) if depth)
    return next(filter(None, named), '')

  return {name: readable(op_name_of(name)) for name in opcodes}, opcodes


def readable(op_name: str) -> str:
  """`jit(step)/transpose(jvp(AlexNet))/AlexNet._run/conv1/dot` as `conv1/dot, backward`."""
  parts = [part for part in op_name.split('/') if part and not _WRAPPING.search(part)]
  apart = [part for part, before in zip(parts, [None, *parts], strict=False) if part != before]
  backward = ', backward' if 'transpose(' in op_name else ''
  return '/'.join(apart) + backward if apart else ''


def lines(found: list[Operation], count: int = 10) -> list[tuple[str, ...]]:
  """The dearest operations as cells of a table."""
  shown = [('dearest operations', 'share', 'ms/step', 'times')]
  for operation in found[:count]:
    what = f'{operation.meaning or "?"} ({operation.name})'
    shown.append(
      (what, f'{operation.share:.1%}', f'{operation.milliseconds:.3f}', f'{operation.times:g}')
    )
  rest = found[count:]
  shown.append(
    (
      f'{len(rest)} others',
      f'{sum(operation.share for operation in rest):.1%}',
      f'{sum(operation.milliseconds for operation in rest):.3f}',
      '',
    )
  )
  return shown
