"""What accelerators are by their makers' data sheets; nothing here was measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    kind: what JAX calls it.
    peak: bfloat16 FLOP/s.
    memory: bytes.
    bandwidth: of that memory, bytes/s.
    link_rate: bytes/s that one port sends; a ring has two ports.
    clock: Hz. By the peak and by what the matrix units do in a cycle: two operations for each of
      their places, of which v4 and v5p have 8 units of 128x128, v5e 4, and v6e 4 times as many.
    source: where these figures stand.
  """

  kind: str
  peak: float
  memory: float
  bandwidth: float
  link_rate: float
  clock: float
  source: str

  def part(self, devices: int) -> 'Chip':
    """Of a chip that JAX describes as so many devices, one of them."""
    shared = {name: getattr(self, name) / devices for name in ('peak', 'memory', 'bandwidth')}
    return dataclasses.replace(self, link_rate=self.link_rate / devices, **shared)


_PAGES = 'docs.cloud.google.com/tpu/docs'
_UNIT = 2 * 128 * 128  # operations of a matrix unit in a cycle

# By the name in a topology, such as 'v5e:2x4'.  Links: the pages give what all ports of a chip send
# and receive together (v5e and v6e have 4 ports, v4 and v5p 6).
TPUS = {
  'v4': Chip(
    'TPU v4',
    *(275e12, 32 * 2**30, 1200e9, 50e9),
    275e12 / (8 * _UNIT),
    f'{_PAGES}/v4; links: arxiv.org/abs/2304.01433',
  ),
  'v5e': Chip(
    'TPU v5 lite',
    *(197e12, 16 * 2**30, 819e9, 50e9),
    197e12 / (4 * _UNIT),
    f'{_PAGES}/v5e',
  ),
  'v5p': Chip(
    'TPU v5', *(459e12, 95 * 2**30, 2765e9, 100e9), 459e12 / (8 * _UNIT), f'{_PAGES}/v5p'
  ),
  'v6e': Chip(
    'TPU v6 lite', *(918e12, 32 * 2**30, 1600e9, 100e9), 918e12 / (16 * _UNIT), f'{_PAGES}/v6e'
  ),
}
