"""Read all of stdin, or a line of the terminal."""

from __future__ import annotations

import sys

from ..errors import TaskError
from .signals import raise_at_signal

_MOST_BYTES = 1 << 30


def read_bytes(what: str, *, may_be_empty: bool = False) -> bytes:
    """Return all of stdin.

    Raises:
        TaskError: it is closed, empty or too long.
    """
    # sys.stdin is None if the descriptor was closed before the start.
    stream = sys.stdin
    if stream is None:  # pyright: ignore[reportUnnecessaryComparison]  # typeshed does not know that
        raise TaskError(f"cannot read {what} from stdin: it is closed")
    if stream.isatty():
        print(f"supdist-engine: reading {what} from the terminal; Ctrl-D ends it", file=sys.stderr)
    try:
        with raise_at_signal():
            data = stream.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise TaskError(f"cannot read {what} from stdin: {error.strerror or error}") from error
    if len(data) > _MOST_BYTES:
        raise TaskError(f"cannot read {what} from stdin: it has more than {_MOST_BYTES >> 30} GiB")
    if not may_be_empty and not data.strip():
        raise TaskError(f"cannot read {what} from stdin: it is empty")
    return data


def read_line(prompt: str) -> str | None:
    """Ask on stderr, and return a line of the terminal without its ends; None at the end of the input."""
    # What cancels a task acts only at its next await, and a read of the terminal has none.
    with raise_at_signal():
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return None
        return line.strip()
