"""The replies of a scripted endpoint, and their file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from ...handlers.json_items import read_items


@dataclass(frozen=True, slots=True)
class Text:
    """A completion, ``delay`` seconds after the request.

    ``usage`` is (prompt, completion) tokens; by default words count.
    """

    text: str
    finish_reason: str = "stop"
    delay: float = 0.0
    usage: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A completion with a refusal in place of content."""

    text: str
    finish_reason: ClassVar[str] = "stop"
    delay: ClassVar[float] = 0.0
    usage: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP error in the API's form; in a stream, an error event.

    Attributes:
        code_name: the error's ``code``, like ``context_length_exceeded``.
        fields: more fields of the error.
    """

    code: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    code_name: str | None = None
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Malformed:
    """A status and these bytes as JSON."""

    body: bytes
    status: int = 200


@dataclass(frozen=True, slots=True)
class Shape:
    """Status 200 and this JSON value."""

    json_value: Any


@dataclass(frozen=True, slots=True)
class Drop:
    """A body that breaks off after so many bytes."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Endless:
    """Spaces until the client leaves or ``limit`` bytes are sent, ``pause`` seconds apart."""

    limit: int = 64 * 1024 * 1024
    pause: float = 0.0


# A piece of text, another delta, an event of this JSON or these bytes, an error, or the end of the stream.
Part = str | dict[str, Any] | Shape | Malformed | Status | Drop | Endless


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed completion. ``Endless`` sends comments."""

    parts: Sequence[Part]
    finish_reason: str | None = "stop"
    usage: tuple[int, int] | None = None


Reply = Text | Refusal | Stream | Status | Malformed | Shape | Drop | Endless


def read_replies(path: Path) -> list[Reply]:
    """Read replies from JSON Lines or a JSON list.

    An item is a string, or an object with ``text`` or ``status`` and more fields of ``Text`` or ``Status``.

    Raises:
        ValueError: the file holds something else.
    """
    replies: list[Reply] = []
    for number, item in enumerate(read_items(path), 1):
        try:
            replies.append(_reply(item))
        except ValueError as error:
            raise ValueError(f"{path}, reply {number}: {error}") from error
    return replies


def _reply(item: Any) -> Reply:
    with suppress(TypeError):
        match item:
            case str():
                return Text(item)
            case {"text": str(text), **others}:
                return Text(text, **cast("dict[str, Any]", others))
            case {"status": int(code), **others}:
                return Status(code, **cast("dict[str, Any]", others))
            case _:
                pass
    raise ValueError(f"a reply is a string, or an object with 'text' or 'status', and not {item!r}")
