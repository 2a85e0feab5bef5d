"""The exceptions that end a command with one line and an exit code, see `cli.run`."""


class UserError(Exception):
  """The input is wrong; the message is one line: what, its value, what is allowed, what to do."""

  exit_code = 2


class Diverged(Exception):
  """Training produced too many non-finite steps in a row; the last good step is kept."""

  exit_code = 3


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; the same command resumes it."""

  exit_code = 75


class DiskFailed(Exception):
  """The folder of a run can no longer be written or read; what was saved there is kept."""

  exit_code = 1


class RunsFailed(Exception):
  """Runs of a sweep failed; the others are done."""

  exit_code = 1
