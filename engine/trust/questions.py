"""Questions to the user about what a file wants and nobody has allowed yet."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...sandbox_image.text import one_line, shorten_middle

_MOST_SHOWN = 160

Answer = Literal["yes", "once", "always", "no", "never"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question for a terminal.

    Attributes:
        text: it holds text of the file.
        answers: what can be answered; ``always`` and ``never`` are remembered.
    """

    text: str
    answers: tuple[Answer, ...]


Ask: TypeAlias = Callable[[Question], Answer]


def shown(text: object) -> str:
    """Return text of a file for a line of a message: escaped, and without its middle where it is long, so that it pushes
    nothing else off the screen.
    """
    return shorten_middle(one_line(str(text)), _MOST_SHOWN)


def command(start: str, *arguments: object) -> str:
    """Return a command that can be pasted into a shell: what a file named is quoted."""
    return (
        " ".join([start, *(shlex.quote(str(each)) for each in arguments)]) if _is_typed(arguments) else start
    )


def _is_typed(arguments: tuple[object, ...]) -> bool:
    """Whether a person can type them: a path with a line end cannot be shown as a command."""
    return all(str(each).isprintable() for each in arguments)


def nobody(question: Question) -> Answer:
    """Answer for a user who is not there."""
    return "no"
