"""Reads the text of a compiled program, `jax.stages.Compiled.as_text()`.

A program is a set of computations, each a list of instructions in the order in which they run; the
entry calls others, loops as often as they come round. TPU compilers write their estimate of an
instruction's cycles beside it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bytes that one of n devices on a ring sends for a byte of what the operation returns.
SENT_PER_BYTE = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
  'all-to-all': lambda n: (n - 1) / n,
}
# Bits of an element, by the name of its type; those with a width in their name need no entry.
_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_COLLECTIVES = ('all-', 'reduce-scatter', 'collective-', 'ragged-')
# They neither compute nor move anything, nor do a TPU's custom calls `AllocateBuffer` (memory for
# the result of a loop) and `ConcatBitcast` (slices that were copied side by side, seen as one).
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id iota'
  ' opt-barrier while call conditional'.split()
)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation.

  Attributes:
    name, opcode: of the instruction.
    result: its type, such as 'f32[8,4]{1,0}' or a tuple of such.
    operands: names of the instructions whose results it takes; of a constant, its value.
    attributes: the rest of the line.
  """

  name: str
  opcode: str
  result: str
  operands: str
  attributes: str

  @property
  def operand_names(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.operands)

  @property
  def scope(self) -> str:
    """JAX's name of the operation, which says the layer and the pass; '' if it has none."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def estimated_cycles(self) -> int | None:
    """The compiler's estimate for one run; None if it has none."""
    found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
    return int(found[1]) if found else None

  @property
  def collective(self) -> str:
    """Name of the collective operation, '' if it is none; of an asynchronous one, at its end."""
    name = self.opcode.removesuffix('-done')
    return name if name.startswith(_COLLECTIVES) and not name.endswith('-start') else ''

  @property
  def is_free(self) -> bool:
    """Whether it takes no time, or runs beside others, as copies between memories do."""
    asynchronous = self.opcode.endswith(('-start', '-done', '-update'))
    named = 'AllocateBuffer' in self.attributes or 'ConcatBitcast' in self.attributes
    return (
      self.opcode in _FREE
      or (self.opcode == 'custom-call' and named)
      or (asynchronous and not self.collective)
    )

  def called(self, *attributes: str) -> list[str]:
    """Names of the computations in attributes such as 'body'."""
    lists = re.findall(rf'\b(?:{"|".join(attributes)})=(\{{.*?\}}|%?[\w.\-]+)', self.attributes)
    return [name for names in lists for name in re.findall(r'[\w.\-]+', names)]


class HloModule:
  """A compiled program.

  Attributes:
    computations: {name: instructions in their order}.
    entry: name of the one that is run.
    unknown_loops: names of loops of which `executed` could not tell how often they come round.
  """

  def __init__(self, text: str):
    """Takes the text; lines outside a computation are the entry's."""
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = current = ''
    self.unknown_loops: set[str] = set()
    for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
      if head := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
        current = head[2]
        self.entry = current if head[1] else self.entry
      elif found := re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$', line):
        name, result, opcode, rest = found.groups()
        operands, _, attributes = rest.partition('), ')
        parsed = Instruction(name, opcode, result, operands.removesuffix(')'), attributes)
        self.computations.setdefault(current, []).append(parsed)

  def executed(
    self, name: str | None = None, times: int = 1, scope: str = ''
  ) -> Iterator[tuple[Instruction, int, str]]:
    """Yields each instruction that is run, how often, and its scope, in their order.

    What is inside a fusion is part of it. Of a conditional all branches count, and loops of which
    it cannot be told how often they come round count once. What has no scope of its own, such as
    what the compiler has made, has that of the last operation fused in it or of the loop around.
    """
    for instruction in self._body(self.entry if name is None else name):
      fused = [i.scope for call in instruction.called('calls') for i in self._body(call)]
      own = instruction.scope or next(filter(None, reversed(fused)), scope)
      yield instruction, times, own
      if instruction.opcode == 'while':
        trips = self.trips(instruction)
        if trips is None:
          self.unknown_loops.add(instruction.name)
        for body in instruction.called('body'):
          yield from self.executed(body, times * (1 if trips is None else trips), own)
      elif instruction.opcode in ('call', 'conditional'):
        branches = ('to_apply', 'branch_computations', 'true_computation', 'false_computation')
        for branch in instruction.called(*branches):
          yield from self.executed(branch, times, own)

  def trips(self, loop: Instruction) -> int | None:
    """How often a loop comes round that counts up by one, as JAX's do; None if it is another."""
    if known := re.search(r'known_trip_count\D*(\d+)', loop.attributes):
      return int(known[1])
    (condition,) = loop.called('condition')
    within = self.computations[condition]
    limits = [int(i.operands) for i in within if re.fullmatch(r'constant -?\d+', _words(i))]
    compare = [i for i in within if 'direction=LT' in i.attributes]
    if len(limits) != 1 or not compare:
      return None
    return max(0, limits[0] - self._start(loop, within, compare[-1]))

  def _start(self, loop, within, compare) -> int:
    """The first value of a loop's counter; 0 where it is not written down."""
    counters = [i for i in within if i.name in compare.operand_names and i.opcode != 'constant']
    index = re.search(r'index=(\d+)', counters[0].attributes) if counters else None
    before = self._by_name
    carried = before.get(loop.operand_names[0])
    if not index or carried is None or carried.opcode != 'tuple':
      return 0
    value = before.get(carried.operand_names[int(index[1])])
    while value is not None and value.opcode in ('copy', 'bitcast'):
      value = before.get(value.operand_names[0])
    return int(value.operands) if value and re.fullmatch(r'constant -?\d+', _words(value)) else 0

  def moved_bytes(self, instruction: Instruction) -> int:
    """Bytes of the arrays that an instruction reads and writes; of slices, of the slice alone."""
    written = array_bytes(instruction.result)
    if 'slice' in instruction.opcode or instruction.opcode == 'gather':
      return 2 * written
    return written + sum(array_bytes(self._result(name)) for name in instruction.operand_names)

  def flops(self, instruction: Instruction) -> int:
    """Floating-point operations of the products in an instruction, fused ones included."""
    total = sum(self.flops(i) for name in instruction.called('calls') for i in self._body(name))
    dims = [_dims(self._result(name)) for name in instruction.operand_names]
    size = math.prod(_dims(instruction.result))
    if instruction.opcode == 'dot':
      axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
      total += 2 * size * math.prod(dims[0][int(i)] for i in axes[1].split(',') if i)  # type: ignore[index,misc]
    elif labels := re.search(r'dim_labels=\w+_(\w+)->', instruction.attributes):
      total += 2 * size * math.prod(dims[1]) // max(1, dims[1][labels[1].index('o')])
    return total

  def _body(self, name: str) -> list[Instruction]:
    return self.computations.get(name, [])

  @functools.cached_property
  def _by_name(self) -> dict[str, Instruction]:
    return {i.name: i for body in self.computations.values() for i in body}

  def _result(self, name: str) -> str:
    return self._by_name[name].result if name in self._by_name else ''


def array_bytes(result: str) -> int:
  """Bytes of the arrays in a type; single numbers are left out."""
  return sum(
    _bits(kind) * math.prod(map(int, size.split(','))) // 8
    for kind, size in re.findall(r'(\w+)\[([\d,]+)\]', result)
  )


def _bits(kind: str) -> int:
  if kind in _BITS:
    return _BITS[kind]
  found = re.match(r'[a-z]+(\d+)', kind)
  return int(found[1]) if found else 0


def _dims(result: str) -> list[int]:
  """Of the first array in a type."""
  found = re.search(r'\[([\d,]*)\]', result)
  return [int(size) for size in found[1].split(',') if size] if found else []


def _words(instruction: Instruction) -> str:
  return f'{instruction.opcode} {instruction.operands}'
