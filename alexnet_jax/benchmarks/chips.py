"""What accelerators are by their makers' data sheets; nothing here was measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which JAX sees as one device.

  Attributes:
    kind: what JAX calls it.
    peak: bfloat16 FLOP/s of products.
    memory: bytes.
    bandwidth: of that memory, bytes/s.
    send_rate: bytes/s that it sends in a ring of its kind: by two ports of a TPU, by all links of a
      GPU.
    clock: Hz of a TPU, by the peak and by what the matrix units do in a cycle; 0 of a GPU, whose
      compiler estimates no cycles.
    source: where these figures stand.
  """

  kind: str
  peak: float
  memory: float
  bandwidth: float
  send_rate: float
  clock: float
  source: str


_PAGES = 'https://docs.cloud.google.com/tpu/docs'
_UNIT = 2 * 128 * 128  # operations of a matrix unit of 128x128 in a cycle
_SPECS = 'https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center'

# By the name in a topology, such as 'v5e:2x4'.  Google's pages give what all ports of a chip (4 of
# v5e and v6e, 6 of v4 and v5p) send and receive together.  Units of a chip: v4 and v5p have 8, v5e
# 4.  Of v6e some versions of the page count 4 of 256x256, which are 16 of 128x128 at 1.75 GHz, and
# some 2, which could do 262,144 operations a cycle; libtpu 0.0.42 estimates 369,000 for a product.
CHIPS = {
  'v4': Chip(
    'TPU v4',
    *(275e12, 32 * 2**30, 1200e9, 2 * 50e9),
    275e12 / (8 * _UNIT),
    f'{_PAGES}/v4; links, clock: https://arxiv.org/abs/2304.01433, table 4',
  ),
  'v5e': Chip(
    'TPU v5 lite',
    *(197e12, 16 * 2**30, 819e9, 2 * 50e9),
    197e12 / (4 * _UNIT),
    f'{_PAGES}/v5e',
  ),
  'v5p': Chip(
    'TPU v5', *(459e12, 95 * 2**30, 2765e9, 2 * 100e9), 459e12 / (8 * _UNIT), f'{_PAGES}/v5p'
  ),
  'v6e': Chip(
    'TPU v6 lite', *(918e12, 32 * 2**30, 1600e9, 2 * 100e9), 918e12 / (16 * _UNIT), f'{_PAGES}/v6e'
  ),
  # The 80 GB and SXM ones.  Of NVLink half of what is sent and received.
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB',
    *(312e12, 85_100_068_864, 2039e9, 300e9, 0),
    f'{_SPECS}/a100_sxm_80.txtpb; peak, links: {_NVIDIA}/a100',
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3',
    *(989e12, 84_942_979_072, 3352e9, 450e9, 0),
    f'{_SPECS}/h100_sxm.txtpb; links: {_NVIDIA}/h100',
  ),
  'h200': Chip(
    'NVIDIA H200 141GB HBM3e',
    *(989e12, 151_397_597_184, 4800e9, 450e9, 0),
    f'{_SPECS}/h200.txtpb; links: {_NVIDIA}/h200',
  ),
}
