"""Read the parts of a reply, whatever types an endpoint gives to its fields."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from .base import FinishReason

# Lists within lists of parts.
_MAX_DEPTH = 4

_MAX_COUNT = 2**53

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "content_filter": "refusal",
    "refusal": "refusal",
    "safety": "refusal",
}


class Content(NamedTuple):
    """What a message holds.

    Attributes:
        is_known: whether its content has a known form.
    """

    text: str = ""
    thoughts: str = ""
    refusal: str = ""
    has_tool: bool = False
    is_known: bool = True


def field(value: Any, name: str) -> Any:
    """Return a field of an object of the SDK or of JSON; None if there is none."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).get(name)
    # Only the SDK's objects have it. Their fields may be of any type, or missing.
    return getattr(value, name, None) if hasattr(value, "model_extra") else None


def is_object(value: Any) -> bool:
    """Return whether a value has fields."""
    return isinstance(value, dict) or hasattr(value, "model_extra")


def items(value: Any) -> list[Any]:
    """Return a list; of anything else, an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def finish_reason(value: Any) -> FinishReason | None:
    """Return why an answer ended; None if that is not said."""
    if value is None:
        return None
    return _FINISH.get(value.lower(), "other") if isinstance(value, str) else "other"


def token_count(value: Any) -> int | None:
    """Return a number of tokens; None if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 17:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    # A bool is an int to Python.
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def read_message(message: Any) -> Content:
    """Return what a message, or a piece of one in a stream, holds."""
    content = _read(field(message, "content"), 0)
    thoughts = _said_apart(message) or content.thoughts
    refusal = field(message, "refusal")
    has_tool = bool(field(message, "tool_calls") or field(message, "function_call"))
    return content._replace(
        thoughts=thoughts,
        refusal=refusal if isinstance(refusal, str) and refusal else content.refusal,
        has_tool=has_tool or content.has_tool,
    )


def _read(content: Any, depth: int) -> Content:
    if content is None:
        return Content(is_known=depth == 0)
    if isinstance(content, str):
        return Content(content)
    if isinstance(content, list) and depth < _MAX_DEPTH:
        return _joined([_read(part, depth + 1) for part in cast("list[Any]", content)])
    if is_object(content):
        return _read_part(content, depth)
    return Content(is_known=False)


def _joined(parts: list[Content]) -> Content:
    return Content(
        "".join(part.text for part in parts),
        "".join(part.thoughts for part in parts),
        "".join(part.refusal for part in parts),
        any(part.has_tool for part in parts),
        # One part that is known is an answer.
        not parts or any(part.is_known for part in parts),
    )


def _read_part(part: Any, depth: int) -> Content:
    kind = field(part, "type")
    kind = kind.lower() if isinstance(kind, str) else ""
    if "think" in kind or "reason" in kind:
        return Content(
            thoughts=_text_in(part, ("thinking", "text", "reasoning", "content", "summary"), depth)
        )
    if "tool" in kind or "function" in kind:
        return Content(has_tool=True)
    if kind == "refusal":
        return Content(refusal=_text_in(part, ("refusal", "text"), depth))
    text = _text_in(part, ("text", "content", "value"), depth)
    # A part of an unknown kind, such as an image, is no text, and no error beside one.
    return Content(text, is_known=bool(text or kind))


def _text_in(value: Any, names: tuple[str, ...], depth: int) -> str:
    if isinstance(value, str):
        return value
    if depth >= _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(_text_in(each, names, depth + 1) for each in cast("list[Any]", value))
    for name in names:
        found = field(value, name)
        if found and (text := _text_in(found, (*names, "value"), depth + 1)):
            return text
    return ""


def _said_apart(message: Any) -> str:
    # The same thoughts may stand in several of them.
    for name in ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks"):
        found = field(message, name)
        if found and (text := _text_in(found, ("text", "thinking", "content", "summary"), 0)):
            return text
    return ""
