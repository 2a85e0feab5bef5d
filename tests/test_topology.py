"""Compiled programs as text, and the step compiled for TPUs that are not here.

What needs the TPU's compiler skips where libtpu is not installed; no TPU is needed.
"""

import importlib.util
import json
import math

import pytest
from helpers.commands import error_line, get_config, run

from alexnet_jax.benchmarks import targets, topology
from alexnet_jax.benchmarks.chips import CHIPS
from alexnet_jax.benchmarks.estimate import estimate
from alexnet_jax.benchmarks.hlo import HloModule
from alexnet_jax.model import layers, nets

# As libtpu 0.0.42 writes it for a v5e, but shorter: a fusion, a loop of three with another of two
# in it, an all-reduce, a copy beside it, and operations without an estimate.
STORED = """
HloModule jit__fun, is_scheduled=true

%fused.1 (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %exp.1 = f32[8,128]{1,0:T(8,128)} exponential(%p), metadata={op_name="jit(f)/views/exp"}
}

%inner_condition (a: (s32[], f32[8,128])) -> pred[] {
  %two = s32[]{:T(128)} constant(2)
  %a = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%a), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %two), direction=LT
}

%inner_body (b: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %b = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %y = f32[8,128]{1,0:T(8,128)} get-tuple-element(%b), index=1
  %slow = f32[8,128]{1,0:T(8,128)} fusion(%y), kind=kLoop, calls=%fused.2, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %t2 = (s32[], f32[8,128]) tuple(%i2, %slow)
}

%condition (c: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %c = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%body (d: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %d = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%d), index=1
  %product = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%fused.3, \
metadata={op_name="jit(f)/transpose(jvp(AlexNet))/conv1/dot"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %zero = s32[]{:T(128)} constant(0)
  %within = (s32[], f32[8,128]) tuple(%zero, %product)
  %loop.2 = (s32[], f32[8,128]) while(%within), condition=%inner_condition, body=%inner_body, \
metadata={op_name="jit(f)/jvp(AlexNet)/pool1/while"}
  ROOT %t = (s32[], f32[8,128]) tuple(%j2, %x2)
}

ENTRY %main (q: f32[8,128]) -> f32[8,128] {
  %q = f32[8,128]{1,0:T(8,128)} parameter(0)
  %copy-start.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128], u32[]) copy-start(%q)
  %nameless = f32[8,128]{1,0:T(8,128)} fusion(%q), kind=kLoop, calls=%fused.1, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one)
  %start = (s32[], f32[8,128]) tuple(%first, %nameless)
  %loop.1 = (s32[], f32[8,128]) while(%start), condition=%condition, body=%body
  %dense = f32[8192,8192]{1,0} custom-call(%left, %right), custom_call_target="other", \
metadata={op_name="jit(f)/jvp(AlexNet)/fc1/dot"}
  %left = f32[8192,4096]{1,0} parameter(1)
  %all-reduce.1 = (f32[]{:T(128)}, f32[1000,1000]{1,0:T(8,128)S(1)}, /*index=2*/bf16[500]{0}) \
all-reduce(%n, %g, /*index=2*/%h), replica_groups={{0,1,2,3}}, to_apply=%add, \
metadata={op_name="jit(f)/update/psum"}
  ROOT %copy-done.1 = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
}
"""
SENT = 4 * 1000**2 + 2 * 500
CHIP = CHIPS['v5e']


def found():
  return estimate(HloModule(STORED), dict.fromkeys(('conv1', 'pool1', 'fc1'), 0.0), CHIP, devices=4)


def test_loops_count_as_often_as_they_come_round():
  cycles = found()['layers']
  assert cycles['views']['forward'] == 1000  # by what is fused in it
  assert cycles['conv1'] == {'forward': 0, 'backward': 3 * 100, 'flop': 0}  # from 1 to 4
  assert cycles['pool1'] == {
    'forward': 3 * 2 * 7,
    'backward': 0,
    'flop': 0,
  }  # by the loop around it


def test_operations_without_an_estimate_count_by_their_bytes():
  report, a_second = found(), CHIP.clock
  dense, reduced = 4 * (8192**2 + 8192 * 4096), SENT
  expected = [math.ceil(size / CHIP.bandwidth * a_second) for size in (dense, reduced)]
  assert report['without_estimate'] == {
    'custom-call': {'count': 1, 'cycles': expected[0]},
    'all-reduce': {'count': 1, 'cycles': expected[1]},
  }
  assert report['layers']['fc1']['forward'] == expected[0]
  assert report['estimated_cycles'] == 1000 + 300 + 42 + sum(expected)
  assert report['estimated_cycles'] == sum(sum(c.values()) for c in report['layers'].values())


def test_products_count_by_their_operations_where_that_is_more():
  """2 * 8192^3 operations at 197 TFLOP/s are 5.6 ms, their bytes at 819 GB/s 1 ms."""
  square = 'f32[8192,8192]{1,0}'
  text = f"""
  %a = {square} parameter(0)
  %dot = {square} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %k = bf16[5,5,48,256]{{3,2,1,0}} parameter(1)
  %conv = bf16[512,27,27,256]{{3,2,1,0}} convolution(%images, %k), dim_labels=b01f_01io->b01f
  """
  program = HloModule(text)
  flops = {i.name: program.flops(i) for i, _, _ in program.executed()}
  assert flops['dot'] == 2 * 8192**3
  assert flops['conv'] == 2 * 512 * 27 * 27 * 256 * 5 * 5 * 48
  report = estimate(program, {}, CHIP, 1)
  assert report['estimated_seconds'] == pytest.approx(sum(flops.values()) / CHIP.peak, rel=1e-6)


def test_bytes_and_products_of_a_gpu_count_by_its_data_sheet():
  text = """
  %x = bf16[512,27,27,96]{3,2,1,0} parameter(0)
  %k = bf16[256,5,5,48]{3,2,1,0} parameter(1)
  %conv = (bf16[512,27,27,256]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp(AlexNet)/conv2/conv"}
  %y = bf16[512,27,27,256]{3,2,1,0} get-tuple-element(%conv), index=0
  %norm = bf16[512,27,27,256]{3,2,1,0} fusion(%y), kind=kLoop, calls=%g, \
metadata={op_name="jit(f)/transpose(jvp(AlexNet))/norm2/mul"}
  """
  gpu, pixels, flop = CHIPS['h100'], 512 * 27 * 27, 1e12
  report = estimate(HloModule(text), {'conv2': flop, 'norm2': 0.0}, gpu, 1)
  moved = {'conv2': 2 * (pixels * (96 + 256) + 256 * 5 * 5 * 48), 'norm2': 2 * pixels * 2 * 256}
  assert report['layers'] == {
    'conv2': {'forward': moved['conv2'], 'backward': 0, 'flop': flop},
    'norm2': {'forward': 0, 'backward': moved['norm2'], 'flop': 0},
  }
  assert flop / gpu.peak > moved['conv2'] / gpu.bandwidth  # so the products decide there
  least = flop / gpu.peak + moved['norm2'] / gpu.bandwidth
  assert report['estimated_seconds'] == pytest.approx(least)
  assert report['estimated_cycles'] is None


def test_collectives_take_time_beyond_their_memory_traffic():
  report = found()
  assert report['collectives'] == [{'operation': 'all-reduce', 'count': 1, 'bytes': SENT}]
  sending = 1.5 * SENT / CHIP.send_rate  # each of 4 sends 2 * 3/4 of it
  in_cycles = report['without_estimate']['all-reduce']['cycles'] / CHIP.clock
  assert report['collective_seconds'] == pytest.approx(sending - in_cycles)
  assert report['estimated_seconds'] == pytest.approx(
    report['estimated_cycles'] / CHIP.clock + report['collective_seconds']
  )


def test_a_collective_beside_computation_is_hidden_by_it():
  def exposed(cycles):
    text = f"""
    %start = f32[250000]{{0}} all-reduce-start(%x), to_apply=%add
    %f = f32[1]{{0}} fusion(%y), calls=%g, backend_config={{"estimated_cycles":"{cycles}"}}
    %done = f32[250000]{{0}} all-reduce-done(%start)
    """
    report = estimate(HloModule(text), {}, CHIP, 2)
    assert report['collectives'] == [{'operation': 'all-reduce', 'count': 1, 'bytes': 10**6}]
    return report['collective_seconds']

  assert exposed(10**6) == 0
  assert exposed(1000) == pytest.approx(exposed(0) - 1000 / CHIP.clock)


def test_a_loop_whose_trips_are_not_known_is_named():
  assert HloModule(STORED).trips(HloModule(STORED).computations['main'][6]) == 3
  report = estimate(HloModule(STORED.replace('constant(4)', 'parameter(1)')), {}, CHIP, 4)
  assert report['unknown_loops'] == ['loop.1']


def test_a_step_that_fits_needs_no_search_and_one_that_does_not_ends_at_the_largest_tried():
  config = get_config('digits')
  limit, per_image = 16 * 2**30, 10**7
  tried = []

  def compiled(batch_size):
    tried.append(batch_size)
    taken = 10**9 + batch_size // 8 * per_image
    return {
      'batch_size': batch_size,
      'devices': 8,
      'memory_bytes': taken,
      'memory_limit': limit,
      'fits': taken <= limit,
    }

  best = topology._largest_that_fits(config, compiled(8 * 4096), compiled)
  most = (limit - 10**9) // per_image * 8
  assert 0.9 * most < best <= most and best in tried and len(tried) <= 5
  # One that takes too long ends the search.
  assert topology._largest_that_fits(config, compiled(8 * 4096), lambda batch_size: None) is None


@pytest.mark.parametrize(
  'words, message',
  [
    (['--topology=v5e:2x4'], '--topology=v5e:2x4 does nothing without --dry_run: add it'),
    (['--json=-'], '--json=- does nothing without --topology'),
    (['--dry_run', '--topology=v6:2x4'], '--topology=v6:2x4: did you mean v6e?'),
    (
      ['--dry_run', '--topology=v5e'],
      'of TPUs along each axis, such as v5e:2x4, of GPUs in a machine, such as h100:8',
    ),
  ],
)
def test_a_wrong_flag_is_one_line(words, message):
  done = run('alexnet_jax.main', '--config=digits', *words)
  assert message in error_line(done) and done.stdout == ''


@pytest.mark.parametrize('name, extra', [('v5e:2x4', 'tpu'), ('h100:8', 'cuda12')])
def test_without_the_compiler_the_error_says_what_to_install(monkeypatch, name, extra):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(topology.UserError, match=rf"pip install 'jax\[{extra}\]'"):
    targets.find_chip(name)


# By the TPU's compiler.


def compiled(*words):
  """What `main --topology=v5e:2x2 --json=-` prints, alone on its standard output."""
  pytest.importorskip('libtpu', reason="the TPU's compiler: pip install 'jax[tpu]'")
  flags = ('--config=digits', '--dry_run', '--topology=v5e:2x2', '--json=-')
  done = run('alexnet_jax.main', *flags, *words)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
def test_a_small_step_compiled_for_a_tpu():
  """One all-reduce of all gradients, no all-gather, and no more memory than the plan says."""
  config, table = get_config('digits'), nets.digits(10)
  report = compiled('--config.model.onednn=auto')
  parameters = layers.count_parameters(table, (28, 28, 3))
  assert report['collectives'] == [{'operation': 'all-reduce', 'count': 1, 'bytes': 4 * parameters}]
  units = sum(math.prod(outputs) for _, _, outputs in layers.walk(table, (28, 28, 3)))
  images = config.batch_size // 4
  planned = 3 * 4 * parameters + images * (4 * units + 32 * 32 * 3 * 128 // 3)  # channels padded
  assert report['fits'] and 2 * 4 * parameters < report['memory_bytes'] <= planned
  assert isinstance(report['estimated_cycles'], int) and report['unknown_loops'] == []
  passes = [found[way] for found in report['layers'].values() for way in ('forward', 'backward')]
  assert report['estimated_cycles'] == sum(passes)
  assert report['estimated_cycles'] / CHIP.clock >= report['product_flop'] / CHIP.peak
  for name in ('conv1', 'norm1', 'pool1'):
    assert min(report['layers'][name][way] for way in ('forward', 'backward')) > 0
  # Parts of a batch in a loop, one after another, cost no less than the whole at once.
  in_parts = compiled('--config.grad_accum_steps=4')
  assert in_parts['estimated_cycles'] >= report['estimated_cycles']
  # This net in float32 is convolved by oneDNN on a CPU with AVX-512, which no TPU has.
  assert not [target for target in report['custom_calls'] if 'onednn' in target.lower()]
