"""The exit codes of the commands, and how a command waits and fails."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..write_failures import remedy_for
from .signals import Stopped, run_until_signal

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ..result import StopReason

T = TypeVar("T")

ANSWERED, RAISED, USAGE, LIMIT, NO_SANDBOX, NO_MODEL, NO_FILES = range(7)
# As `timeout` and a shell report them: out of time, 128 + SIGKILL, 128 + SIGINT.
TIMED_OUT, KILLED, INTERRUPTED = 124, 137, 130

# Not those of engine/sandbox/diagnostics.py: without a descriptor nothing more can be imported.
_FILES_REMEDY = "close files, or raise the limit (`ulimit -n`)"
_REMEDIES = {
    errno.EMFILE: _FILES_REMEDY,
    errno.ENFILE: _FILES_REMEDY,
    errno.ENOMEM: "free memory, or raise the limit (`ulimit -v`)",
    errno.EAGAIN: "end other processes, or raise the limit (`ulimit -u`)",
}
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def exit_code(stop_reason: StopReason) -> int:
    """Return the exit code for a run that has a result."""
    match stop_reason:
        case "final":
            return ANSWERED
        # Even with an answer: no call was answered, so it may be a guess.
        case "worker_failed":
            return NO_MODEL
        case _:
            return LIMIT


def wait(work: Coroutine[Any, Any, T], log_dir: str | None = None) -> T:
    """Run a coroutine to its end. Ctrl-C, SIGTERM or SIGHUP cancels it; exit when it has cleaned up."""
    try:
        return run_until_signal(work)
    except Stopped as stopped:
        kept = f"; the logs are in {log_dir}" if log_dir else ""
        fail(stopped.status, f"{stopped}{kept}")


def code_of(error: Exception) -> int:
    """Return the exit code for an error that ends a command; 1 for a bug."""
    from ...handlers import HandlerError
    from ..errors import CacheError, LogError, SandboxError, TaskError

    match error:
        case TaskError():
            return USAGE
        case SandboxError():
            return NO_SANDBOX
        case LogError() | CacheError():
            return NO_FILES
        case HandlerError():
            return NO_MODEL
        case _:
            return found[0] if (found := lack_of(error)) is not None else RAISED


def lack_of(error: Exception) -> tuple[int, str] | None:
    """Return exit code and message if an error says what this machine lacks; None for others."""
    if isinstance(error, MemoryError):
        return NO_SANDBOX, "out of memory; free some, or raise the limit (`ulimit -v`)"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return (
            NO_SANDBOX,
            "no thread can be started; end other processes, or raise the limit (`ulimit -u`, `-v`)",
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if "No usable temporary directory" in str(error.strerror):
        # Python tries several folders, and does not say why each failed.
        return (
            NO_SANDBOX,
            "no temporary folder can be written (full or read-only); set TMPDIR to a folder that can",
        )
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _REMEDIES:
        return NO_SANDBOX, f"{where}{error.strerror}; {_REMEDIES[error.errno]}"
    if error.errno in _NOT_WRITABLE:
        return NO_FILES, f"cannot write: {where}{error.strerror}; {remedy_for(error, 'choose another place')}"
    return None


def fail(code: int, message: object) -> NoReturn:
    """Print a message on stderr and exit."""
    from ...sandbox_image.text import printable
    from ..terminal import wrapped

    print(wrapped(f"supdist-engine: {printable(str(message))}"), file=sys.stderr)
    sys.exit(code)
