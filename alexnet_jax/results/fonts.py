"""Text in any script on figures: finds fonts that have its letters, and replaces those of none."""

import functools
import itertools
import unicodedata
from collections.abc import Iterator
from typing import Any

_FAMILY = 'DejaVu Sans'  # comes with Matplotlib
_NOT_FOR_NAMES = ('cm', 'STIX', 'Last Resort')  # TeX's codes are others; boxes for all letters
_NO_GLYPH = '\ufffd'


def label(text: str) -> dict[str, Any]:
  """Arguments of Matplotlib's `text` for a name that is shown as it is, never as a formula.

  Args:
    text: any name; it may hold bytes that are no UTF-8, as names of files do.

  Returns:
    `s` with U+FFFD for what no installed font has, the fonts as `fontfamily`, and `parse_math`.
  """
  families, missing = _families(frozenset(text))
  shown = ''.join(_NO_GLYPH if letter in missing else letter for letter in text)
  return {'s': shown, 'fontfamily': list(families), 'parse_math': False}


def width(text: str) -> int:
  """The columns that a text takes; East Asian letters take two."""
  return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def shortened(text: str, most: int) -> str:
  """The text, its end replaced by an ellipsis where it is wider than `most` letters."""
  if width(text) <= most:
    return text
  kept = text
  while width(kept) > most - 1:
    kept = kept[:-1]
  return kept + '…'


@functools.lru_cache(1024)
def _families(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
  """Fonts for these letters, and the letters that none has."""
  families: tuple[str, ...] = (_FAMILY,)
  missing = letters
  for family, faces in _installed():
    rest = {x for x in missing if not all(face.get_char_index(ord(x)) for face in faces)}
    if len(rest) < len(missing) and family != _FAMILY:
      families += (family,)
    missing = frozenset(rest)
    if not missing:
      break
  return families, missing


def _installed() -> Iterator[tuple[str, list]]:
  """Upright faces by family, Matplotlib's own first; opened only as far as they are asked for."""
  from matplotlib import font_manager, ft2font

  entries = sorted(
    (entry for entry in font_manager.fontManager.ttflist if entry.style == 'normal'),
    key=lambda entry: (entry.name != _FAMILY, entry.name),
  )
  for family, faces in itertools.groupby(entries, lambda entry: entry.name):
    if family.startswith(_NOT_FOR_NAMES):
      continue
    try:
      yield family, [ft2font.FT2Font(face.fname) for face in faces]
    except (OSError, RuntimeError):  # damaged, or without outlines, as some emoji are
      continue
