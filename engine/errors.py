"""Errors of the engine, by what the caller can do.

::

    EngineError
    ├── TaskError                   fix the task file or the arguments
    ├── LogError                    make room, or choose another log_dir; nothing was spent after it
    ├── LogFormatError              a log cannot be read; the message names the file and the line
    ├── CacheError                  choose another path for the cache of answers, or mend what its message says
    ├── SandboxError                used wrongly: a cell while one runs, a sandbox after close
    │   ├── SandboxFileError        a file cannot be put or got; ``code`` says why
    │   ├── SandboxUnavailable      this level of isolation cannot be had here: names the capability and the remedy
    │   └── SandboxLost             the guest is gone, and its state with it; reset() or open another
    └── ProtocolError               LocalProtocolError: our bug; RemoteProtocolError: their bytes

A model's failures are ``HandlerError`` and its kinds, in ``supdist.handlers``. A limit that was reached is no
error: it is how a run ended, in ``RunResult.stop_reason``. What the code in a sandbox does is no error either:
it is a ``CellResult``.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""


class TaskError(EngineError):
    """The task file or the arguments are wrong; the message says which and what is allowed."""


class LogError(EngineError):
    """A log cannot be written."""


class LogFormatError(EngineError):
    """A log cannot be read, or a newer version wrote it; the message names the file and the line."""


class CacheError(EngineError):
    """The file of cached answers cannot be used; the message says why and what to do."""


class SandboxError(EngineError):
    """A sandbox was used in a way that it does not allow."""


class SandboxUnavailable(SandboxError):
    """The isolation that was asked for cannot be had here."""

    def __init__(self, capability: str, remedy: str) -> None:
        super().__init__(f"{capability}. {remedy}")
        self.capability = capability
        self.remedy = remedy


class SandboxFileError(SandboxError):
    """A file could not be put or got. ``code``: not_found, not_regular, outside, too_large or io."""

    def __init__(self, code: str, path: str) -> None:
        words = {
            "not_found": "there is no such file",
            "not_regular": "it is, or leads through, a link or something else that is no regular file",
            "outside": "a path must be relative and stay in the working directory",
            "too_large": "it is larger than was asked for",
            "io": "it cannot be read or written (no room, a name that is not allowed)",
        }
        super().__init__(f"{path!r}: {words.get(code, code)}")
        self.code = code
        self.path = path


class SandboxLost(SandboxError):
    """The sandbox ended, and with it every variable that its code had set."""


class ProtocolError(EngineError):
    """Messages came that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug to report."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol; it was dropped."""
