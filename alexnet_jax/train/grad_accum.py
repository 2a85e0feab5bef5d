"""Gradient accumulation: micro-batches one after another, whose activations take less memory."""

import jax
import jax.numpy as jnp
from jax import lax


def accumulate(compute_gradients, steps: int):
  """Wraps a function that computes gradients; see `step.make_compute_gradients`.

  Args:
    compute_gradients: (state, batch) -> ((gradients, metrics), batch_stats).
    steps: the number of micro-batches, which must divide a device's batch.

  Returns:
    A function like `compute_gradients` that averages over the micro-batches.
  """

  def accumulated(state, batch):
    micro_batches = jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), batch)

    def add(sums, micro_batch):
      return jax.tree.map(jnp.add, sums, compute_gradients(state, micro_batch)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(compute_gradients, state, first))
    # XLA:CPU's convolutions take 40 times as long in a loop (github.com/jax-ml/jax/issues/12868).
    # Unrolled, the activations of all micro-batches are in memory at once.
    sums = lax.platform_dependent(
      micro_batches,
      cpu=lambda xs: lax.scan(add, zeros, xs, unroll=True)[0],
      default=lambda xs: lax.scan(add, zeros, xs)[0],
    )
    return jax.tree.map(lambda x: x / steps, sums)

  return accumulated
