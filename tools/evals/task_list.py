"""List the tasks with their options."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from ...sandbox_image.text import printable
from ...tasks.base import TaskDataError
from ...tasks.registry import Description, Option, describe, names
from ..tables import terminal_width

_COLUMNS = 80


def as_text() -> str:
    """Return the tasks for a person: name, summary, and a line for each option with its default."""
    width = terminal_width() or _COLUMNS
    return "\n\n".join(_task(name, width) for name in names())


def as_json() -> str:
    """Return the tasks as a JSON list."""
    return json.dumps([_as_data(name) for name in names()], indent=1)


def _task(name: str, width: int) -> str:
    try:
        found = describe(name)
    except TaskDataError as error:
        # Of another package: the others are listed all the same.
        return printable(f"{name}\n  {error}")
    lines = [name, *_wrapped(found.summary, width, "  ")]
    for each in found.options:
        lines += _option(each, width)
    return printable("\n".join(lines))


def _option(option: Option, width: int) -> list[str]:
    choices = option.type.split("|")
    kind = option.type.upper() if len(choices) == 1 else "WORD"
    default = {None: "required", "null": "no default"}.get(option.default, f"default {option.default}")
    words = "" if len(choices) == 1 else f" One of {', '.join(choices)}."
    text = f"{option.help[:1].upper()}{option.help[1:]}.{words}"
    return [f"  -T {option.name}={kind} ({default})", *_wrapped(text, width, "       ")]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, max(width, 20), initial_indent=indent, subsequent_indent=indent)


def _as_data(name: str) -> dict[str, object]:
    try:
        found: Description = describe(name)
    except TaskDataError as error:
        return {"name": name, "error": str(error)}
    return asdict(found)
