"""Sums what the compiler of an accelerator says of a training step, by layer and pass.

Of a TPU these are cycles, the compiler's estimate of each operation, as often as loops run it.  An
operation without one (a collective, a custom call) counts as the larger of its products over the
chip's peak and of the bytes that it reads and writes over the memory's bandwidth.  Copies between
memories that run beside other operations do not count.  The compiler of a GPU estimates nothing:
there bytes are summed, as if no operation found its input in a cache, beside the layers' products.
A fusion belongs to the layer of its last operation.
"""

import collections
import math
import re
from typing import Any

from alexnet_jax.benchmarks.chips import CHIPS, Chip
from alexnet_jax.benchmarks.hlo import SENT_PER_BYTE, HloModule, array_bytes
from alexnet_jax.terminal import aligned, si

_LISTED = 4  # kinds of operations without an estimate
_PARTS = ('views', 'loss', 'update')  # of a step besides the layers, as step.py names them


def estimate(module: HloModule, flop: dict[str, float], chip: Chip, devices: int) -> dict[str, Any]:
  """Sums the cycles or bytes of a compiled step on one device.

  Args:
    module: the step.
    flop: of the products of each layer in a step on a device, {layer: operations}.
    chip: what a device is.
    devices: how many there are.

  Returns:
    estimated_cycles, int, of a step on a TPU; None of a GPU;
    layers, {layer or part: {'forward', 'backward', 'flop'}} in cycles, of a GPU in bytes;
    collectives, [{'operation', 'count', 'bytes'}], of a device's results;
    without_estimate, {operation: {'count', 'cycles'}}, part of the cycles;
    custom_calls, {target: count};
    unknown_loops, names of loops counted once because it cannot be told how often they come round;
    collective_seconds, those which nothing hides, besides what they are in the cycles;
    estimated_seconds, of a step; of a GPU the least that its data sheet allows.
  """
  rate = chip.clock or chip.bandwidth  # of what is summed, a second
  layers = {
    name: {'forward': 0, 'backward': 0, 'flop': flop.get(name, 0.0)}
    for name in (*flop, *_PARTS, 'collectives', 'other')
  }
  sent: dict[str, list[int]] = {}
  missing: dict[str, dict[str, int]] = {}
  custom_calls: collections.Counter[str] = collections.Counter()
  begun: dict[str, int] = {}  # asynchronous collectives, and the sum up to them
  total, exposed = 0, 0.0
  for instruction, times, scope in module.executed():
    if target := re.search(r'custom_call_target="([^"]*)"', instruction.attributes):
      custom_calls[target[1]] += times
    if instruction.is_free:
      begun[instruction.name] = total
      continue
    each = instruction.estimated_cycles if chip.clock else module.moved_bytes(instruction)
    if each is None:
      needs = (
        module.flops(instruction) / chip.peak,
        module.moved_bytes(instruction) / chip.bandwidth,
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
      exposed += max(0.0, times * size * share / chip.send_rate - hidden / rate)
    words = re.findall(r'[\w.\-]+', scope)
    layer = next((word for word in words if word in layers), 'other')
    layer = 'collectives' if instruction.collective else layer
    layers[layer]['backward' if 'transpose(' in scope else 'forward'] += times * each
    total += times * each
  layers = {name: found for name, found in layers.items() if any(found.values())}
  seconds = total / rate if chip.clock else sum(least_seconds(layers, chip).values())
  return {
    'estimated_cycles': total if chip.clock else None,
    'layers': layers,
    'collectives': [
      {'operation': name, 'count': count, 'bytes': size} for name, (count, size) in sent.items()
    ],
    'without_estimate': {name: found for name, found in missing.items() if found['cycles']},
    'custom_calls': dict(custom_calls),
    'unknown_loops': sorted(module.unknown_loops),
    'collective_seconds': exposed,
    'estimated_seconds': seconds + exposed,
  }


def least_seconds(layers: dict[str, dict[str, float]], chip: Chip) -> dict[str, float]:
  """By the data sheet: of each layer's bytes over the bandwidth or its products over the peak."""
  return {
    name: max((each['forward'] + each['backward']) / chip.bandwidth, each['flop'] / chip.peak)
    for name, each in layers.items()
  }


def lines(report: dict[str, Any]) -> list[str]:
  """What `compile_for` returns, for people."""
  chip, limit = CHIPS[report['chip']], si(report['memory_limit'], 'B')
  versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items())
  images, memory = report['batch_size'] // report['devices'], report['memory_bytes']
  found = [
    f'topology      {report["topology"]}: {report["devices"]} devices with {images:,} images each,'
    f' compiled by {versions}; nothing was run',
  ]
  if not report['fits']:
    most = report['largest_batch']
    fitting = (
      f'batch_size={most:,} fits, the largest tried'
      if most
      else 'none smaller that was compiled in time does'
    )
    wanted = si(memory, 'B') if memory else 'more'
    return [*found, f'fits          no: {wanted} a device, of {limit}; {fitting}']
  collective = [
    f'{each["count"]} {each["operation"]} of {si(each["bytes"], "B")}'
    for each in report['collectives']
  ]
  sending = f'{1e3 * report["collective_seconds"]:.2f} ms a step of collectives'
  speed = f'{report["estimated_images_per_second"]:,.0f} images/s is an estimate,'
  products, moved = report['product_flop'] / chip.peak, report['traffic_bytes'] / chip.bandwidth
  found += [
    f'fits          yes: {si(memory, "B")} a device, of {limit}, of which'
    f' {si(report["temporary_bytes"], "B")} only while a step runs',
    f'collectives   {", ".join(collective) or "none"} a step',
  ]
  if chip.clock:
    missing = sorted(report['without_estimate'].items(), key=lambda found: -found[1]['cycles'])
    listed = ', '.join(
      f'{found["count"]} {name} ({_millions(found["cycles"])})' for name, found in missing[:_LISTED]
    )
    listed += f' and {len(missing) - _LISTED} smaller kinds' * (len(missing) > _LISTED)
    found += [
      f"cycles        {_millions(report['estimated_cycles'])} million a step is the compiler's"
      f" estimate; at the chip's peak the products take {_millions(products * chip.clock)}, and all"
      f' bytes as if nothing stayed on the chip {_millions(moved * chip.clock)}',
      *[f'              of which without its estimate, in millions: {listed}'] * bool(missing),
      f'speed         {speed} at {chip.clock / 1e9:.2f} GHz and with {sending}; not measured',
    ]
  else:
    found += [
      f'traffic       {si(report["traffic_bytes"], "B")} a step, as if nothing were in a cache:'
      f' {1e3 * moved:.2f} ms at the {si(chip.bandwidth, "B/s")} of the data sheet; products'
      f' {1e3 * products:.2f} ms at {si(chip.peak, "FLOP/s")}',
      f'speed         at most {speed} if each layer took no longer than its bytes or its products,'
      f' and with {sending}; not measured',
    ]
  if report['unknown_loops']:
    found.append(f'              loops counted once: {", ".join(report["unknown_loops"])}')
  return [*found, '', *layer_table(report)]


def layer_table(report: dict[str, Any]) -> list[str]:
  """Cycles by layer and pass, as the compiler estimates them; of a GPU bytes and products."""
  chip, layers = CHIPS[report['chip']], report['layers']
  if chip.clock:
    seconds = {name: each['forward'] + each['backward'] for name, each in layers.items()}
    heading, unit, more = 'million cycles', 1e6, []
  else:
    seconds = least_seconds(layers, chip)
    heading, unit, more = 'GB moved', 1e9, ['GFLOP', 'ms at least']
  total = sum(seconds.values())
  rows = [(heading, 'forward', 'backward', *more, 'share')]
  in_all = {
    way: sum(each[way] for each in layers.values()) for way in ('forward', 'backward', 'flop')
  }
  for name, each in (*layers.items(), ('in all', in_all)):
    share = seconds.get(name, total)
    cells = [f'{each[way] / unit:,.2f}' for way in ('forward', 'backward')]
    cells += [f'{each["flop"] / 1e9:,.1f}', f'{1e3 * share:.2f}'] if more else []
    rows.append((name, *cells, f'{share / total:.1%}'))
  return aligned(rows)


def _millions(cycles: float) -> str:
  return f'{cycles / 1e6:,.2f}'
