"""The exit codes of the commands, and how a command waits and fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

ANSWERED, RAISED, USAGE, LIMIT, NO_SANDBOX, NO_MODEL, NO_FILES = range(7)
# As `timeout` and a shell report them: out of time, 128 + SIGKILL, 128 + SIGINT.
TIMED_OUT, KILLED, INTERRUPTED = 124, 137, 130


def wait(work: Coroutine[Any, Any, T], log_dir: str | None = None) -> T:
    """Run a coroutine to its end. Ctrl-C cancels it, and exits when it has cleaned up."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        kept = f"; the logs are in {log_dir}" if log_dir else ""
        fail(INTERRUPTED, f"interrupted{kept}")


def fail(code: int, message: object) -> NoReturn:
    """Print a message on stderr and exit."""
    from ...sandbox_image.text import printable

    print(f"supdist-engine: {printable(str(message))}", file=sys.stderr)
    sys.exit(code)
