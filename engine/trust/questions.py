"""Questions to the user about a file's wishes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...sandbox_image.text import one_line, shorten_middle

# A longer text could push the rest of a message off the screen.
_MOST_SHOWN = 160

# "always" and "never" are remembered in the settings.
Answer = Literal["yes", "once", "always", "no", "never"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question for a terminal, escaped."""

    text: str
    answers: tuple[Answer, ...]


Ask: TypeAlias = Callable[[Question], Answer]


def shown(text: object) -> str:
    """Return text for a message, escaped and shortened."""
    return shorten_middle(one_line(str(text)), _MOST_SHOWN)


def command(start: str, *arguments: object) -> str:
    """Return a command to paste into a shell."""
    return (
        " ".join([start, *(shlex.quote(str(each)) for each in arguments)])
        if _is_printable(arguments)
        else start
    )


def _is_printable(arguments: tuple[object, ...]) -> bool:
    # A path with a line end cannot be shown as a command.
    return all(str(each).isprintable() for each in arguments)


def always_no(question: Question) -> Answer:
    """Answer no."""
    return "no"
