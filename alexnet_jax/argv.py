"""The words of a command line as flags with their values."""

from collections.abc import Iterable
from typing import NamedTuple


class Argument(NamedTuple):
  """`--name=value`, `--name value`, `--name`, or a word that is no flag.

  Attributes:
    words: one or two words, as they were given.
    name: of the flag, without dashes; '' of a word that is no flag.
    value: '' if there is none.
  """

  words: tuple[str, ...]
  name: str
  value: str

  def replace_value(self, value: str) -> 'Argument':
    *before, last = self.words
    return Argument((*before, last.removesuffix(self.value) + value), self.name, value)

  def config_field(self) -> str:
    """The field of `--config.FIELD=VALUE` or `--noconfig.FIELD`; '' of other arguments."""
    path = self.name.removeprefix('no')
    return path.removeprefix('config.') if path.startswith('config.') else ''


def split(words: Iterable[str]) -> list[Argument]:
  """Splits a command line without knowing its flags.

  A word that follows a flag without "=" counts as its value, which is right for all flags that need
  one; of flags that need none, ask for the name only.
  """
  arguments: list[Argument] = []
  for word in words:
    name, equals, value = word.lstrip('-').partition('=')
    if word.startswith('-'):
      arguments.append(Argument((word,), name, value if equals else ''))
    elif arguments and len(arguments[-1].words) == 1 and _wants_value(arguments[-1]):
      arguments[-1] = Argument((*arguments[-1].words, word), arguments[-1].name, word)
    else:
      arguments.append(Argument((word,), '', word))
  return arguments


def _wants_value(argument: Argument) -> bool:
  return bool(argument.name) and '=' not in argument.words[0]
