"""Sums what a TPU's compiler says of a training step: cycles by layer and pass, and collectives.

The cycles are the compiler's estimate of each operation, as often as loops run it.  An operation
without one (a collective, a custom call) counts as the larger of its products over the chip's peak
and of the bytes that it reads and writes over the memory's bandwidth.  Copies between memories
that run beside other operations do not count.  A fusion belongs to the layer of its last operation.
"""

import collections
import math
import re
from typing import Any

from alexnet_jax.benchmarks import chips
from alexnet_jax.benchmarks.hlo import SENT_PER_BYTE, Program, array_bytes
from alexnet_jax.terminal import aligned, si

_LISTED = 4  # kinds of operations without an estimate
_PARTS = ('views', 'loss', 'update')  # of a step besides the layers, as step.py names them


def estimate(program: Program, names: list[str], chip: chips.Chip, devices: int) -> dict[str, Any]:
  """Sums the cycles of a compiled step.

  Args:
    program: the step.
    names: of the layers.
    chip: what a device is.
    devices: how many there are.

  Returns:
    estimated_cycles, int, of a step on one device;
    layers, {layer or part: {'forward', 'backward'}} in cycles, which add up to that;
    collectives, [{'operation', 'count', 'bytes'}], of a device's results;
    without_estimate, {operation: {'count', 'cycles'}}, part of the cycles;
    custom_calls, {target: count};
    unknown_loops, names of loops counted once because it cannot be told how often they come round;
    collective_seconds, those which nothing hides, besides what they are in the cycles;
    estimated_seconds, of a step.
  """
  cycles = {
    name: {'forward': 0, 'backward': 0} for name in (*names, *_PARTS, 'collectives', 'other')
  }
  sent: dict[str, list[int]] = {}
  missing: dict[str, dict[str, int]] = {}
  custom_calls: collections.Counter[str] = collections.Counter()
  begun: dict[str, int] = {}  # asynchronous collectives, and the cycles up to them
  total, exposed = 0, 0.0
  for instruction, times, scope in program.executed():
    each = instruction.estimated_cycles
    if target := re.search(r'custom_call_target="([^"]*)"', instruction.attributes):
      custom_calls[target[1]] += times
    if instruction.is_free:
      begun[instruction.name] = total
      continue
    if each is None:
      needs = (
        program.flops(instruction) / chip.peak,
        program.moved_bytes(instruction) / chip.bandwidth,
      )
      each = math.ceil(max(needs) * chip.clock)
      found = missing.setdefault(instruction.opcode, {'count': 0, 'cycles': 0})
      found['count'] += times
      found['cycles'] += times * each
    if operation := instruction.collective:
      size = array_bytes(instruction.result)
      count, sum_of_bytes = sent.get(operation, (0, 0))
      sent[operation] = [count + times, sum_of_bytes + times * size]
      share = SENT_PER_BYTE.get(operation, lambda n: 1)(devices)
      start = begun.get(instruction.operand_names[0], total) if instruction.operand_names else total
      hidden = (total - start) * ('-done' in instruction.opcode) + each * times
      exposed += max(0.0, times * size * share / (2 * chip.link_rate) - hidden / chip.clock)
    words = re.findall(r'[\w.\-]+', scope)
    layer = next((word for word in words if word in cycles), 'other')
    layer = 'collectives' if instruction.collective else layer
    cycles[layer]['backward' if 'transpose(' in scope else 'forward'] += times * each
    total += times * each
  return {
    'estimated_cycles': total,
    'layers': {name: found for name, found in cycles.items() if any(found.values())},
    'collectives': [
      {'operation': name, 'count': count, 'bytes': size} for name, (count, size) in sent.items()
    ],
    'without_estimate': {name: found for name, found in missing.items() if found['cycles']},
    'custom_calls': dict(custom_calls),
    'unknown_loops': sorted(program.unknown_loops),
    'collective_seconds': exposed,
    'estimated_seconds': total / chip.clock + exposed,
  }


def lines(report: dict[str, Any]) -> list[str]:
  """What `compile_for` returns, for people."""
  memory, limit = report['memory_bytes'], si(report['memory_limit'], 'B')
  versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items())
  each = report['batch_size'] // report['devices']
  found = [
    f'topology      {report["topology"]}: {report["devices"]} devices with {each:,} images each,'
    f' compiled by {versions}; nothing was run',
  ]
  if not report['fits']:
    most = report['largest_batch']
    fitting = (
      f'batch_size={most:,} fits, the largest tried' if most else 'no smaller batch tried does'
    )
    wanted = si(memory, 'B') if memory else 'more'
    return [*found, f'fits          no: {wanted} a device, of {limit}; {fitting}']
  cycles, chip = report['estimated_cycles'], chips.TPUS[report['chip']]
  collective = [
    f'{each["count"]} {each["operation"]} of {si(each["bytes"], "B")}'
    for each in report['collectives']
  ]
  missing = sorted(report['without_estimate'].items(), key=lambda found: -found[1]['cycles'])
  listed = ', '.join(
    f'{found["count"]} {name} ({_millions(found["cycles"])})' for name, found in missing[:_LISTED]
  )
  listed += f' and {len(missing) - _LISTED} smaller kinds' * (len(missing) > _LISTED)
  floors = report['arithmetic_cycles'], report['traffic_bytes'] / chip.bandwidth * chip.clock
  found += [
    f'fits          yes: {si(memory, "B")} a device, of {limit}, of which'
    f' {si(report["temporary_bytes"], "B")} only while a step runs',
    f'collectives   {", ".join(collective) or "none"} a step',
    f"cycles        {_millions(cycles)} million a step is the compiler's estimate; at the chip's"
    f' peak the products take {_millions(floors[0])}, and all bytes as if nothing stayed on the'
    f' chip {_millions(floors[1])}',
    *[f'              of which without its estimate, in millions: {listed}'] * bool(missing),
    *[f'              loops counted once: {", ".join(report["unknown_loops"])}']
    * bool(report['unknown_loops']),
    f'speed         {report["estimated_images_per_second"]:,.0f} images/s is an estimate, at'
    f' {chip.clock / 1e9:.2f} GHz and with {1e3 * report["collective_seconds"]:.2f} ms a step of'
    ' collectives; it was not measured',
  ]
  return [*found, '', *layer_table(report)]


def layer_table(report: dict[str, Any]) -> list[str]:
  """Cycles by layer and pass, as the compiler estimates them."""
  total = report['estimated_cycles']
  rows = [('million cycles', 'forward', 'backward', 'share')]
  for name, passes in report['layers'].items():
    share = f'{sum(passes.values()) / total:.1%}'
    rows.append((name, _millions(passes['forward']), _millions(passes['backward']), share))
  sums = (sum(each[way] for each in report['layers'].values()) for way in ('forward', 'backward'))
  return aligned([*rows, ('in all', *map(_millions, sums), '100.0%')])


def _millions(cycles: float) -> str:
  return f'{cycles / 1e6:,.2f}'
