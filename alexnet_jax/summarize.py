"""Prints a net layer by layer.

python -m alexnet_jax.summarize --config=configs/imagenet.py:owt
python -m alexnet_jax.summarize --config=configs/imagenet.py --ablation=ungrouped
"""

import math
import sys

from absl import flags

from alexnet_jax import cli
from alexnet_jax.model import layers, nets
from alexnet_jax.terminal import aligned

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too


def summary(table: layers.Table, shape: layers.Shape, title: str) -> str:
  """The rows of `table` for one image of `shape`, with totals, as aligned text."""
  lines = [('layer', 'kind', 'kernel', 'stride', 'groups', 'output', 'parameters', 'MACs')]
  parameters = macs = 0
  for row, inputs, outputs in layers.walk(table, shape):
    count = sum(math.prod(p) for p in row.parameters(inputs).values())
    work = row.macs(inputs)
    parameters, macs = parameters + count, macs + work
    size = getattr(row, 'kernel', getattr(row, 'window', None))
    lines.append(
      (
        row.name,
        type(row).__name__,
        f'{size}x{size}' if size else '',
        str(getattr(row, 'stride', '')),
        str(getattr(row, 'groups', '')),
        'x'.join(map(str, outputs)),
        f'{count:,}' if count else '',
        f'{work:,}' if work else '',
      )
    )
  lines.append(('total', '', '', '', '', '', f'{parameters:,}', f'{macs:,}'))
  heading, *rows, total = aligned(lines, left=(0, 1))
  rule = '-' * len(heading)
  return '\n'.join([title, '', heading, rule, *rows, rule, total])


def main() -> None:
  config, name = cli.read_config()
  classes = config.data.num_classes or 10
  side = config.input.crop
  note = '' if config.data.num_classes else ' (classes as an example: the data decides)'
  print(
    summary(
      nets.table_of(config, classes),
      (side, side, 3),
      f'{name}: net {nets.title(config.model)}, input {side}x{side}x3, {classes:,} classes{note}',
    )
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
