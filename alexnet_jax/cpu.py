"""Process settings that make XLA's CPU backend fast; other devices do not notice."""

import ctypes
import os
import sys

from jaxlib.version import __version__ as jaxlib_version

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def prepare_process() -> None:
  """Sets up memory and compiler; to be called before JAX's first computation and before threads."""
  _keep_freed_memory()
  _prefer_eigen_convolutions()


def _keep_freed_memory() -> None:
  """Makes malloc keep what is freed.

  XLA allocates and frees every activation in every step. By default glibc takes large blocks from
  the kernel and gives them back each time; the kernel zeroes them, page by page: 138,000 page
  faults and a fifth of the time of a step of the full-size net. Threads share the arena because
  only the main one can hold large blocks.
  """
  if sys.platform == 'linux':
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', lambda parameter, value: 0)
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_TOP_PAD, 64 << 20)


def _prefer_eigen_convolutions() -> None:
  """Leaves convolutions to Eigen, and matrix products and sums to YNNPACK.

  jaxlib 0.10 gives all of them to YNNPACK, which spreads a convolution over blocks of output
  channels only: with few channels on a single core, and weight gradients at half of Eigen's speed.
  A flag that jaxlib does not know would end the process, so others keep their defaults.
  """
  if jaxlib_version.startswith('0.10.'):
    flag = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
    os.environ['XLA_FLAGS'] = f'{flag} {os.environ.get("XLA_FLAGS", "")}'.strip()
