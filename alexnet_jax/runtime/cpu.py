"""Process settings that make XLA's CPU backend fast; they do not affect other devices."""

import ctypes
import mmap
import os
from pathlib import Path

import jaxlib

from alexnet_jax.runtime.environment import cpu_info

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
_EIGEN_CONVOLUTIONS = f'--{_FLAG}=-individual_convolution'


def configure() -> None:
  """Sets up memory and compiler; to be called before JAX's first computation and before threads."""
  _keep_freed_memory()
  _prefer_eigen_convolutions()


def settings(onednn: bool) -> str:
  """Describes the settings for the log; `onednn`: whether the net convolves by oneDNN."""
  eigen = _EIGEN_CONVOLUTIONS in os.environ.get('XLA_FLAGS', '')
  others = 'Eigen' if eigen else "XLA's choice"
  convolutions = f'oneDNN, those of gradients of filters by {others}' if onednn else others
  memory = 'kept' if _mallopt() else "given back (no glibc's mallopt)"
  return f'convolutions by {convolutions}, freed memory {memory}'


def has_avx512() -> bool:
  """Whether the CPU has AVX-512; False where that is not known."""
  return 'avx512f' in cpu_info().get('flags', '').split()


def _keep_freed_memory() -> None:
  """Makes malloc keep freed memory.

  XLA allocates and frees every activation in every step. By default glibc gives large blocks back
  to the kernel, which zeroes them: 138,000 page faults and a fifth of the time of a step of the
  full-size net. Threads share one arena because only the main one can hold large blocks.
  """
  if mallopt := _mallopt():
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_TOP_PAD, 64 << 20)


def _mallopt():
  """glibc's function, or None where there is another C library."""
  return getattr(ctypes.CDLL(None), 'mallopt', None)


def _prefer_eigen_convolutions() -> None:
  """Leaves convolutions to Eigen, and matrix products and sums to YNNPACK.

  jaxlib gives all of them to YNNPACK, which spreads a convolution over blocks of output channels
  only: with few channels on a single core, and weight gradients at half of Eigen's speed.
  """
  given = os.environ.get('XLA_FLAGS', '').strip()
  names_a_file = given and not given.startswith('-')
  if _FLAG not in given and not names_a_file and _jaxlib_knows_the_flag():
    os.environ['XLA_FLAGS'] = f'{_EIGEN_CONVOLUTIONS} {given}'.strip()


def _jaxlib_knows_the_flag() -> bool:
  """Looks for the flag in jaxlib, since XLA aborts at a flag that it does not know.

  As a C string the name is that of the flag; elsewhere it is that of a protobuf's field.
  """
  words = (f'{_FLAG}\0'.encode(), b'LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION')
  return all(map(jaxlib_contains, words))


def jaxlib_contains(word: bytes) -> bool:
  """Whether `word` is in the library of jaxlib that XLA is in, by far its largest file."""
  library = max(Path(jaxlib.__file__).parent.iterdir(), key=lambda file: file.stat().st_size)
  with open(library, 'rb') as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(word) >= 0
