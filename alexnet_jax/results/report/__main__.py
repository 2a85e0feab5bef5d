"""Compares runs with each other and with what was published.

  python -m alexnet_jax.results.report runs/sweep
  python -m alexnet_jax.results.report runs/a runs/b --out=comparison

Runs that differ in their seed alone are one row.  Writes report.md, report.csv and report.html (one
file, for any browser) into --out, by default the first folder.
"""

import sys
from pathlib import Path

from absl import flags

from alexnet_jax import command
from alexnet_jax.errors import UserError

_OUT = flags.DEFINE_string('out', None, 'Folder for the report; the first DIR if not given.')


def main(folders: list[str]) -> None:
  if not folders:
    raise UserError('give folders of runs or of sweeps: python -m alexnet_jax.results.report DIR')
  from alexnet_jax import files
  from alexnet_jax.results.report import comparison, page, runs, tables

  found, unfinished = runs.find([Path(folder) for folder in folders])
  rows = comparison.rows(found)
  text = tables.markdown(rows, unfinished)
  out = Path(_OUT.value or folders[0])
  try:
    files.write_text(out / 'report.md', text)
    files.write_text(out / 'report.csv', tables.csv_text(rows))
    files.write_text(out / 'report.html', page.html_page(rows, unfinished, command.spoken()))
  except OSError as error:
    raise UserError(f'{out} cannot be written ({error.strerror}): choose another --out') from None
  print(f'{text}\n{out / "report.html"}')


if __name__ == '__main__':
  sys.exit(command.run(main, positional=True, configured=False))
