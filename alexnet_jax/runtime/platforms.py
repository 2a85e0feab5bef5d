"""What JAX computes on and in, settled at the start of a command."""

import os
import shutil
import sys

from alexnet_jax.errors import UserError


def prepare_process() -> None:
  """Has JAX find its devices and says what may not be as the user thinks; after `distributed.join`.

  Raises:
    UserError: $JAX_PLATFORMS names what is not here.
  """
  import jax

  if jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # its stubs leave out flags
    jax.config.update('jax_enable_x64', False)
    print('note: JAX_ENABLE_X64 is left aside: nets compute in 32 bits or less', file=sys.stderr)
  if local_devices()[0].platform == 'cpu' and not os.environ.get('JAX_PLATFORMS'):
    for name, install in unused_accelerators():
      print(
        f'note: there is {name}, but JAX computes on the CPU: pip install {install}',
        file=sys.stderr,
      )


def local_devices() -> list:
  """This process's devices.

  Raises:
    UserError: $JAX_PLATFORMS names what is not here.
  """
  import jax

  try:
    return jax.local_devices()
  except (RuntimeError, AssertionError) as error:
    chosen = os.environ.get('JAX_PLATFORMS', '')
    reason = ' '.join(str(error).split())[:200] or 'there is none'
    raise UserError(
      f'JAX_PLATFORMS={chosen}: JAX has no such device here ({reason}); unset it, or set it to cpu'
    ) from None


def unused_accelerators() -> list[tuple[str, str]]:
  """Accelerators here, as far as can be told without JAX, and what to install for them."""
  found = []
  if os.path.exists('/dev/nvidia0') or shutil.which('nvidia-smi'):
    found.append(('an NVIDIA GPU', "'.[cuda13]', or '.[cuda]' with an older driver"))
  if os.path.exists('/dev/accel0') or 'TPU_ACCELERATOR_TYPE' in os.environ:
    found.append(('a TPU', "'.[tpu]'"))
  return found
