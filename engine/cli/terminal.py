"""Text of models and guests on its way to a terminal."""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n\t")
# Cc: control; Cf: format, bidirectional overrides among them; Cs: surrogates; Co and Cn: no known look.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    """The text with every character escaped that could move a cursor, set a title, or hide or reorder text."""
    if text.isprintable():
        return text
    return "".join(_show(character) for character in text)


def _show(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape").decode("ascii")
