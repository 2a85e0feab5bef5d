"""What commands write for people: suggestions for misspelled names."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """Suggests the known name that a misspelled one stands for.

  `lr` and `optimizer.lr` are `optimizer.learning_rate`: initials count for more than letters in
  common.

  Args:
    word: what was given, such as `no_lnr` or `optimizer.lr`.
    known: the names that are allowed.

  Returns:
    'did you mean X?', or '' if no name is like it.
  """
  known = list(known)
  section, _, name = word.rpartition('.')
  initials = [
    other
    for other in known
    if other.startswith(section) and _initials(other.rpartition('.')[2]) == name
  ]
  near = initials or difflib.get_close_matches(word, known, 1, 0.5)
  return f'did you mean {near[0]}?' if near else ''


def _initials(name: str) -> str:
  words = name.split('_')
  return ''.join(word[:1] for word in words) if len(words) > 1 else ''
