"""Plain data on the wire: what the arguments and results of a host tool may be, and how they are written.

None, bool, int of 64 bits, finite float, str, list and dict with str keys, as JSON; a tuple is taken as a list.
Both ends judge by these rules: the guest for a message that helps, the engine because the guest is hostile.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias, cast

import msgspec

from .text import replace_surrogates

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None

MAX_DEPTH = 32
MAX_VALUES = 10_000
"""Values in one piece of data, containers and what they hold; a short text may announce very many."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


class NotPlain(Exception):
    """The data breaks the rules. The text names at most the type of what was found, never a value."""


class TooLarge(NotPlain):
    """It is plain, and too much of it."""


def encode(value: object, most_bytes: int) -> bytes:
    """Plain data as JSON of at most ``most_bytes``.

    Raises:
        NotPlain: there is something else in it, or it is nested too deeply.
        TooLarge: it has too many bytes or values.
    """
    data = msgspec.json.encode(_Copier(most_bytes).copy(value, 1))
    if len(data) > most_bytes:
        raise _too_large(most_bytes)
    return data


def decode(data: bytes) -> Plain:
    """The data that a peer, trusted or not, says is plain.

    Raises:
        NotPlain: it is no JSON, or breaks the rules.
        TooLarge: it has too many values.
    """
    # Judged before anything is made of it: many small containers cost far more than their bytes.
    if _containers(data) > MAX_VALUES and _containers(_TEXT.sub(b"", data)) > MAX_VALUES:
        raise _too_many()
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
        raise NotPlain("no JSON of plain data") from None
    return _Copier(len(data)).copy(value, 1)


def _containers(data: bytes) -> int:
    """How many begin in this JSON, if it has no text in it that counts as well."""
    return data.count(b"[") + data.count(b"{")


def _too_large(most_bytes: int) -> TooLarge:
    return TooLarge(f"more than {most_bytes} bytes")


def _too_many() -> TooLarge:
    return TooLarge(f"more than {MAX_VALUES} values")


class _Copier:
    """Copies data into exact types, and stops at the first thing that is too much."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._chars = most_bytes
        self._values = MAX_VALUES

    def copy(self, value: object, depth: int) -> Plain:
        self._values -= 1
        if self._values < 0:
            raise _too_many()
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value)
            case int():
                return _integer(value)
            case float():
                return _number(value)
            case list() | tuple():
                _check_depth(depth)
                items = cast("list[object] | tuple[object, ...]", value)
                return [self.copy(item, depth + 1) for item in items]
            case dict():
                _check_depth(depth)
                pairs = cast("dict[object, object]", value).items()
                return {self._key(key): self.copy(item, depth + 1) for key, item in pairs}
            case _:
                raise NotPlain(f"a value of type {type(value).__name__}")

    def _text(self, text: str) -> str:
        text = replace_surrogates(text)
        self._chars -= len(text)
        if self._chars < 0:
            raise _too_large(self._most_bytes)
        return text

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise NotPlain(f"a key of type {type(key).__name__}, where only str can be one")
        return self._text(key)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotPlain(f"more than {MAX_DEPTH} levels")


def _integer(value: int) -> int:
    exact = int.__int__(value)
    if not -(1 << 63) <= exact < 1 << 64:
        raise NotPlain("an int of more than 64 bits")
    return exact


def _number(value: float) -> float:
    exact = float.__float__(value)
    if not math.isfinite(exact):
        raise NotPlain("a float that is not finite")
    return exact
