"""The errors of the engine. Each kind names what the caller can do.

::

    EngineError
    ├── TaskError                   fix the task file or the arguments
    │   └── CodeTooLong             send less code; put data into the context or a file
    ├── LogError                    see the message; or choose another log_dir
    ├── LogFormatError              read the file and line in the message
    ├── CacheError                  choose another path for the cache
    ├── SandboxError                run one cell at a time, and none after close
    │   ├── SandboxFileError        see ``code``
    │   ├── SandboxUnavailable      see ``remedy``
    │   └── SandboxLost             reset() it, or open another
    └── ProtocolError               LocalProtocolError: our bug; RemoteProtocolError: their bytes
"""

from __future__ import annotations


# No error: a limit that is reached (RunResult.stop_reason), and a failure of guest code (CellResult).
# A model's failure is a HandlerError of supdist.handlers.
class EngineError(Exception):
    """The base of the engine's errors."""


class TaskError(EngineError):
    """A task file or an argument is wrong; the message says which."""


class CodeTooLong(TaskError, ValueError):
    """The code of a cell is larger than a message to the sandbox may be."""


class LogError(EngineError):
    """A log cannot be written; nothing was spent after it."""


class LogFormatError(EngineError):
    """A log cannot be read, or a newer version wrote it."""


class CacheError(EngineError):
    """The file of cached answers cannot be used."""


class SandboxError(EngineError):
    """A sandbox was used wrongly."""


class SandboxUnavailable(SandboxError):
    """This machine lacks a capability for the isolation."""

    def __init__(self, capability: str, remedy: str) -> None:
        super().__init__(f"{capability}. {remedy}")
        self.capability = capability
        self.remedy = remedy


class SandboxFileError(SandboxError):
    """A file cannot be put or got; ``code`` is not_found, not_regular, outside, too_large, no_room or io.

    Args:
        limit: for too_large and no_room: the most bytes that were allowed.
    """

    def __init__(self, code: str, path: str, limit: int = 0) -> None:
        words = {
            "not_found": "there is no such file",
            "not_regular": "it is no regular file, or a link is on the way to it",
            "outside": "a path must be relative and stay in the working directory",
            "too_large": f"it has more than {limit} bytes; raise max_bytes, or read it in parts with code",
            "no_room": f"/work has room for {limit} bytes at most; raise scratch, and memory above it",
            "io": "it cannot be read or written (disk full, or name not allowed)",
        }
        # repr: a path may hold control characters.
        super().__init__(f"{path!r}: {words.get(code, code)}")
        self.code = code
        self.path = path


class SandboxLost(SandboxError):
    """The guest and its variables are gone."""


class ProtocolError(EngineError):
    """A message breaks the protocol."""


class LocalProtocolError(ProtocolError):
    """This program broke the protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; its connection was closed."""
