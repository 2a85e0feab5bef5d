"""Compares runs with each other and with what was published.

  python -m alexnet_jax.report runs/sweep
  python -m alexnet_jax.report runs/a runs/b --out=comparison

Runs that differ in their seed alone are one row.  Writes report.md, report.csv and report.html (one
file, for any browser) into --out, by default the first folder.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError

_OUT = flags.DEFINE_string('out', None, 'Folder for the report; the first DIR if not given.')


def main(folders: list[str]) -> None:
  if not folders:
    raise UserError('give folders of runs or of sweeps: python -m alexnet_jax.report DIR')
  from alexnet_jax.sweep import report_files

  out = Path(_OUT.value or folders[0])
  text = report_files.write_report([Path(folder) for folder in folders], out, cli.command_line())
  print(f'{text}\n{out / "report.html"}')


if __name__ == '__main__':
  sys.exit(cli.run(main, positional=True, configured=False))
