"""The one-line error for a wrong argument of the Python API."""

from __future__ import annotations

from typing import NoReturn

from ..sandbox_image.text import shorten
from .errors import TaskError

_MOST_SHOWN = 60
_MOST_BITS = 10_000


def reject(name: str, value: object, expected: str, remedy: str = "") -> NoReturn:
    """Raise a one-line ``TaskError`` for a wrong argument."""
    raise TaskError(f"{name} must be {expected}, not {describe(value)}" + (f"; {remedy}" if remedy else ""))


def describe(value: object) -> str:
    """Return a short text for a value."""
    # A caller's object may raise anything where it is only to be named.
    try:
        return _describe(value)
    except Exception:
        return "a value that cannot be shown"


def _describe(value: object) -> str:
    kind = type(value).__name__
    # Python writes no number of more than 4,300 digits.
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length():,} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return shorten(repr(value), _MOST_SHOWN)
    if isinstance(value, str):
        return f"the text {shorten(repr(value), _MOST_SHOWN)}"
    if isinstance(value, type):
        # A class without its parentheses: "a type" would not say which.
        return f"the class {value.__name__}"
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    return f"{article} {kind}"
