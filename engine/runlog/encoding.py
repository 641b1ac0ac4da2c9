"""Encodes events as lines of ASCII JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

from ...sandbox_image.text import KEEP_SURROGATES
from ..slices import SLICE, utf8_slices


def as_plain(value: Any) -> dict[str, Any]:
    """Return the fields of an event, or of a value in it, without defaults."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        for name, default in _omitted(type(value)):
            if fields[name] is default or fields[name] == default:
                del fields[name]
        tag = value.__struct_config__.tag
        return fields if tag is None else {"event": tag, **fields}
    names = _field_names(type(value))  # type: ignore[arg-type]  # mypy takes a class for unhashable here
    return {name: getattr(value, name) for name in names}


def encode_line(fields: dict[str, Any]) -> bytes:
    """Return the line of an event."""
    return _JSON.encode(fields).encode("ascii") + b"\n"


def json_slices(value: object) -> Iterator[bytes]:
    """Yield the JSON of a value in slices."""
    return slices_of(_JSON.iterencode(value))


def slices_of(pieces: Iterator[str]) -> Iterator[bytes]:
    """Join small pieces of text, and yield their UTF-8 in slices."""
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        if len(piece) > SLICE:
            yield "".join(waiting).encode("utf-8", KEEP_SURROGATES)
            waiting, size = [], 0
            yield from utf8_slices(piece)
            continue
        waiting.append(piece)
        size += len(piece)
        if size > SLICE:
            yield "".join(waiting).encode("utf-8", KEEP_SURROGATES)
            waiting, size = [], 0
    yield "".join(waiting).encode("utf-8", KEEP_SURROGATES)


@cache
def _omitted(kind: type[msgspec.Struct]) -> list[tuple[str, object]]:
    return [
        (field.name, field.default)
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    ]


@cache
def _field_names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


# Not msgspec's encoder: it refuses lone surrogates. Escapes keep control bytes of guests out of the file.
_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=True, default=as_plain)
