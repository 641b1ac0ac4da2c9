"""Encode and check the arguments and results of host tools, as JSON."""

from __future__ import annotations

import math
import re
from typing import TypeAlias, cast

import msgspec

from .text import replace_surrogates

# Ints have 64 bits, and floats are finite. A tuple becomes a list. The guest checks for a helpful message,
# the engine because the guest is hostile.
Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None

MAX_DEPTH = 32
# Containers and what they hold. Short JSON can hold very many values.
MAX_VALUES = 10_000

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


class NotPlain(Exception):
    """The data breaks the rules."""

    # The message may name a type, but no value.


class TooLarge(NotPlain):
    """Plain data is too large."""


def encode(value: object, most_bytes: int) -> bytes:
    """Return plain data as JSON of at most ``most_bytes``.

    Raises:
        NotPlain: other data, or too many levels.
        TooLarge: too many bytes or values.
    """
    data = msgspec.json.encode(_Copier(most_bytes).copy(value, 1))
    if len(data) > most_bytes:
        raise _too_large(most_bytes)
    return data


def decode(data: bytes) -> Plain:
    """Decode and check JSON from a hostile peer.

    Raises:
        NotPlain: not JSON, or against the rules.
        TooLarge: too many values.
    """
    # Counted before it is decoded: many small containers take far more memory than their bytes.
    # Brackets in texts count too, so the second count leaves texts out.
    if _containers(data) > MAX_VALUES and _containers(_TEXT.sub(b"", data)) > MAX_VALUES:
        raise _too_many()
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
        raise NotPlain("no JSON of plain data") from None
    return _Copier(len(data)).copy(value, 1)


def _containers(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _too_large(most_bytes: int) -> TooLarge:
    return TooLarge(f"more than {most_bytes} bytes")


def _too_many() -> TooLarge:
    return TooLarge(f"more than {MAX_VALUES} values")


class _Copier:
    # Copies into exact types, so that no method of a subclass runs later.
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
