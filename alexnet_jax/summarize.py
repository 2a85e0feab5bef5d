"""Prints a net layer by layer.

python -m alexnet_jax.summarize --config=configs/imagenet.py:owt
python -m alexnet_jax.summarize --config=configs/imagenet.py --ablation=ungrouped
"""

import sys

from absl import flags

from alexnet_jax import cli
from alexnet_jax.model import layers, nets
from alexnet_jax.terminal import aligned

flags.adopt_module_key_flags(cli)  # --help shows --config and --ablation too


def main() -> None:
  config, name = cli.read_config()
  classes = config.data.num_classes or 10
  side = config.input.crop
  note = '' if config.data.num_classes else ' (classes as an example: the data decides)'
  print(
    f'{name}: net {nets.title(config.model)}, input {side}x{side}x3, {classes:,} classes{note}\n'
  )
  lines: list[tuple[str, ...]] = [
    ('layer', 'kind', 'kernel', 'stride', 'groups', 'output', 'parameters', 'MACs')
  ]
  table, shape = nets.table_of(config, classes), (side, side, 3)
  for row, inputs, outputs in layers.walk(table, shape):
    parameters, macs = row.parameter_count(inputs), row.macs(inputs)
    size = getattr(row, 'kernel', getattr(row, 'window', None))
    lines.append(
      (
        row.name,
        type(row).__name__,
        f'{size}x{size}' if size else '',
        str(getattr(row, 'stride', '')),
        str(getattr(row, 'groups', '')),
        'x'.join(map(str, outputs)),
        f'{parameters:,}' if parameters else '',
        f'{macs:,}' if macs else '',
      )
    )
  totals = layers.count_parameters(table, shape), layers.count_macs(table, shape)
  lines.append(('total', '', '', '', '', '', *(f'{total:,}' for total in totals)))
  heading, *rows, total = aligned(lines, left=(0, 1))
  rule = '-' * len(heading)
  print(heading, rule, *rows, rule, total, sep='\n')


if __name__ == '__main__':
  sys.exit(cli.run(main))
