"""Values in messages, and the folders that both ends know."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from .base import Value

ROOT = "/guest"
"""Where the zygote builds a sandbox's root, in its own mount namespace."""

WORK = "/work"
"""The guest's working directory, empty at the start."""

CONTEXT_FILE = "/context/data"
"""Where a container finds its context: a read-only mount."""


class Outcome(StrEnum):
    """How a cell ended. The host decides it; the guest reports only ``ok`` and ``user_error``."""

    OK = "ok"
    USER_ERROR = "user_error"
    TIMEOUT = "timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    RESOURCE_LIMIT = "resource_limit"
    CRASHED = "crashed"
    KILLED = "killed"
    PROTOCOL_VIOLATION = "protocol_violation"
    BUDGET_EXCEEDED = "budget_exceeded"


CallCode = Literal["budget_exceeded", "too_long", "refused", "unavailable", "timeout", "cancelled"]
"""Why a worker call has no answer."""

ToolCode = Literal["budget_exceeded", "bad_arguments", "failed", "timeout", "cancelled", "too_large"]
"""Why a call of a host tool has no result."""

FileCode = Literal["not_found", "not_regular", "outside", "too_large", "io"]
"""Why a file could not be written or read."""

TextForm = Literal["text/plain", "text/html", "image/svg+xml"]
ImageForm = Literal["image/png", "image/jpeg"]
"""The MIME types in which a cell may show a value."""


class Facts(Value, frozen=True):
    """What the guest measured of its isolation, before any code of a user ran in it.

    ``namespaces`` maps a namespace's kind to its inode.
    """

    namespaces: dict[str, int]
    uid: int
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    interfaces: list[str]
    root_writable: bool


class ErrorInfo(Value, frozen=True):
    """An exception that left a cell: its class's name, ``str()`` and formatted traceback, each cut to a size."""

    type: str
    message: str
    traceback: str


class CallError(Value, frozen=True):
    """A worker call without an answer. The host writes ``message`` for the guest."""

    code: CallCode
    message: str


class ToolFailure(Value, frozen=True):
    """A call of a host tool without a result. The host writes ``message`` for the guest."""

    code: ToolCode
    message: str


class GuestTool(Value, frozen=True):
    """A function that runs inside: a pickle that the host wrote."""

    name: str
    pickle: bytes


class HostTool(Value, frozen=True):
    """A function that runs in the engine. Its number is its place in ``Start``."""

    name: str
    doc: str


class FileEntry(Value, frozen=True):
    """A regular file below the working directory, as the guest reports it; ``size`` in bytes."""

    path: str
    size: int


class Usage(Value, frozen=True):
    """What a sandbox used: processor seconds of the cell, and the most bytes at once so far.

    ``source`` is who counted: the kernel (``cgroup``), the shim with its samples (``watchdog``), or ``none``. Without
    a source the figures are 0.
    """

    cpu_seconds: float
    peak_memory: int
    source: Literal["cgroup", "watchdog", "none"]


NOT_MEASURED = Usage(0.0, 0, "none")
