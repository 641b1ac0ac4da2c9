"""Make the ``repr`` of a large value without building all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import cast

_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
    dict: ("{", "}"),
}


def bounded_repr(value: object, most: int) -> str:
    """Return the value's ``repr``, or a beginning of it that is longer than ``most`` characters.

    Only Python's own containers and texts are cut. Other values give their whole ``repr``.
    """
    writer = _Writer(most)
    with contextlib.suppress(_Enough):
        writer.write(value)
    return "".join(writer.parts)


class _Enough(Exception):
    """Enough characters were written."""


class _Writer:
    def __init__(self, most: int) -> None:
        self.parts: list[str] = []
        self._left = most
        self._open: set[int] = set()

    def write(self, value: object) -> None:
        kind = type(value)
        if kind in _BRACKETS and value:
            self._container(cast("Collection[object]", value), kind)
        elif kind in (str, bytes):
            self._put(repr(_beginning(cast("str | bytes", value), self._left + 1)))
        else:
            self._put(repr(value))

    def _put(self, text: str) -> None:
        self.parts.append(text)
        self._left -= len(text)
        if self._left < 0:
            raise _Enough

    def _container(self, value: Collection[object], kind: type) -> None:
        opening, closing = _BRACKETS[kind]
        if id(value) in self._open:
            self._put(f"{opening}...{closing}")
            return
        self._open.add(id(value))
        self._put(opening)
        mapping = cast("dict[object, object]", value) if kind is dict else None
        for number, item in enumerate(value):
            if number:
                self._put(", ")
            self.write(item)
            if mapping is not None:
                self._put(": ")
                self.write(mapping[item])
        if kind is tuple and len(value) == 1:
            self._put(",")
        self._put(closing)
        self._open.discard(id(value))


def _beginning(text: str | bytes, length: int) -> str | bytes:
    if len(text) <= length:
        return text
    # `repr` chooses its quotes by those in the text. So one of each kind is kept.
    if isinstance(text, bytes):
        return text[:length] + b"".join(quote for quote in (b"'", b'"') if quote in text)
    return text[:length] + "".join(quote for quote in ("'", '"') if quote in text)
