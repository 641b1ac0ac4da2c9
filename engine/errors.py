"""The errors of the engine. Each kind names what the caller can do.

::

    EngineError
    ├── TaskError                   fix the task file or the arguments
    ├── LogError                    make room, or choose another log_dir; nothing was spent after it
    ├── LogFormatError              a log cannot be read; the message names the file and the line
    ├── CacheError                  choose another path for the cache, or do what the message says
    ├── SandboxError                used wrongly: a cell while one runs, a sandbox after close
    │   ├── SandboxFileError        a file cannot be put or got; ``code`` says why
    │   ├── SandboxUnavailable      this machine lacks a capability: the message names it and the remedy
    │   └── SandboxLost             the guest is gone, and its state with it; reset() or open another
    └── ProtocolError               LocalProtocolError: our bug; RemoteProtocolError: their bytes

A model's failure is a ``HandlerError`` of ``supdist.handlers``. A limit that is reached is not an error:
``RunResult.stop_reason`` names it. A failure of guest code is not an error either: it is a ``CellResult``.
"""

from __future__ import annotations


class EngineError(Exception):
    """The base of all errors of the engine."""


class TaskError(EngineError):
    """A task file or an argument is wrong. The message says which, and what is allowed."""


class LogError(EngineError):
    """A log cannot be written."""


class LogFormatError(EngineError):
    """A log cannot be read, or a newer version wrote it; the message names the file and the line."""


class CacheError(EngineError):
    """The file of cached answers cannot be used. The message says why, and what to do."""


class SandboxError(EngineError):
    """A sandbox was used in a way that it does not allow."""


class SandboxUnavailable(SandboxError):
    """This machine cannot give the isolation that was asked for."""

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
    """The sandbox ended, and all variables of its code are gone."""


class ProtocolError(EngineError):
    """A message breaks the protocol."""


class LocalProtocolError(ProtocolError):
    """This program broke the protocol: a bug to report."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol, and its connection was closed."""
