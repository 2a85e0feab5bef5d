"""Where XLA must not fuse, or not share what it has computed."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

T = TypeVar('T')


def no_fusion(function: Callable[..., T], *arrays: jax.Array) -> T:
  """Returns function(*arrays), on a CPU without being fused with what precedes and follows it.

  XLA:CPU fuses an elementwise neighbor into an operation even where the operation reads each value
  many times (as taps of windows, or in another order), and then computes the neighbor as often.
  A call that is not inlined keeps both sides out; `lax.optimization_barrier` is gone by the time
  that XLA:CPU fuses. Other compilers weigh the repeated work themselves.

  Args:
    function: a pure function of arrays.
    *arrays: its arguments.
  """

  def called(*arrays):
    return set_xla_metadata(jax.jit(function)(*arrays), inlineable='false')

  return lax.platform_dependent(*arrays, cpu=called, default=function)


def stored(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Optimization barrier on CUDA, so that later intermediates are recomputed, not stored.

  Elsewhere it is the identity. XLA:GPU writes float32 intermediates of bfloat16 arrays to memory,
  to share them among kernels and between the forward and the backward pass. Reading the arrays
  again is fewer bytes.
  """
  return lax.platform_dependent(
    *arrays,
    cuda=lambda *arrays: lax.optimization_barrier(arrays),
    default=lambda *arrays: arrays,
  )
