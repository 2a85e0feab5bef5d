"""Eight virtual CPU devices, before JAX starts; programs that tests start have one."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
