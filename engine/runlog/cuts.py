"""Cuts long values out of an event. The whole ones go into blobs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, cast

import msgspec

from ..slices import utf8_slices
from .encoding import as_plain, json_slices
from .events import CellError

# A longer text is cut. In bytes of its JSON: a control character takes six of them, an emoji twelve.
INLINE_BYTES = 256 << 10
# Of all texts of an event together.
EVENT_BYTES = 1 << 20
# Characters that stay of a text that is cut.
HEAD = 1024
# After the budget, shorter texts are cut too, and less stays of them.
TIGHT_BYTES, TIGHT_HEAD = 512, 128

_ESCAPE_BYTES = 12
_MAX_VALUES = 5000
_MAX_CUTS = 500
_MAX_DEPTH = 40
# Characters whose escapes are counted exactly; behind them each counts as the longest.
_MAX_MEASURED = 2 * EVENT_BYTES
# What can hold long texts. Usage and isolation, which events have too, cannot.
_CONTAINERS = (list, dict, tuple, CellError)

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class LongValue:
    """A value that was cut out; ``path`` is its field, then keys and indexes."""

    path: Path
    kind: Literal["text", "json"]
    value: object

    def slices(self) -> Iterator[bytes]:
        """Yield its bytes: UTF-8 of a text, JSON of another value."""
        return utf8_slices(cast("str", self.value)) if self.kind == "text" else json_slices(self.value)


class _TooMany(Exception):
    pass


def cut(
    fields: dict[str, Any], *, tight: bool = False, kept: Collection[str] = ()
) -> tuple[dict[str, Any], list[LongValue]]:
    """Return the fields of an event without long values, and these.

    Args:
        fields: as ``as_plain`` returns them.
        tight: cut all that is longer than its head.
        kept: fields that ``tight`` does not concern.
    """
    if _is_small(fields, TIGHT_BYTES if tight else INLINE_BYTES):
        return fields, []
    cutter = _Cutter(TIGHT_HEAD if tight else HEAD)
    inline = TIGHT_BYTES if tight else INLINE_BYTES
    shortened = {
        name: cutter.field(name, value, INLINE_BYTES if name in kept else inline)
        for name, value in fields.items()
    }
    return shortened, cutter.found


def _is_small(fields: dict[str, Any], inline: int) -> bool:
    # Almost every event: decided without a look at single characters.
    room = inline // _ESCAPE_BYTES
    for value in fields.values():
        if isinstance(value, str):
            room -= len(value)
        elif value and isinstance(value, _CONTAINERS):
            return False
    return room >= 0


class _Cutter:
    def __init__(self, head: int) -> None:
        self._head = head
        self.found: list[LongValue] = []
        self._room = EVENT_BYTES
        self._values = _MAX_VALUES
        self._inline = INLINE_BYTES
        self._measurable = _MAX_MEASURED

    def field(self, name: str, value: object, inline: int) -> object:
        self._inline = inline
        before, room = len(self.found), self._room
        try:
            return self._value(value, (name,))
        except _TooMany:
            # Many small values are one long one.
            self._room = room
            self.found[before:] = [LongValue((name,), "json", value)]
            return [] if isinstance(value, (list, tuple)) else {} if isinstance(value, dict) else None

    def _value(self, value: object, path: Path) -> object:
        self._values -= 1
        if self._values < 0 or len(path) > _MAX_DEPTH:
            raise _TooMany
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, msgspec.Struct):
            value = as_plain(value)
        if isinstance(value, dict):
            pairs = cast("dict[str, object]", value).items()
            return {self._key(key): self._value(each, (*path, key)) for key, each in pairs}
        if isinstance(value, (list, tuple)):
            items = cast("list[object]", value)
            return [self._value(each, (*path, index)) for index, each in enumerate(items)]
        return value

    def _key(self, key: str) -> str:
        if len(key) > HEAD:
            raise _TooMany
        self._room -= len(key) * _ESCAPE_BYTES
        return key

    def _text(self, text: str, path: Path) -> str:
        limit = min(self._inline, max(self._room, 0))
        size = self._size(text) if len(text) <= limit else len(text)
        if size <= limit:
            self._room -= size
            return text
        if len(self.found) >= _MAX_CUTS:
            raise _TooMany
        self.found.append(LongValue(path, "text", text))
        head = text[: min(self._head, max(self._room, 0) // _ESCAPE_BYTES)]
        self._room -= len(head) * _ESCAPE_BYTES
        return head

    def _size(self, text: str) -> int:
        self._measurable -= len(text)
        return len(encode_basestring_ascii(text)) if self._measurable >= 0 else len(text) * _ESCAPE_BYTES
