"""Values in messages, and folders that both ends know."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from .base import Value

# Where the zygote builds a sandbox's root, in its own mount namespace.
ROOT = "/guest"

# The guest's working directory, empty at the start.
WORK = "/work"

# A read-only mount in a container.
CONTEXT_FILE = "/context/data"


class Outcome(StrEnum):
    """How a cell ended."""

    # The host decides it. From a guest it takes only whether there was an exception.

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


# Why a call or a request failed.
CallCode = Literal[
    "budget_exceeded", "too_long", "refused", "cut_off", "unavailable", "timeout", "cancelled"
]  # fmt: skip
ToolCode = Literal["budget_exceeded", "bad_arguments", "failed", "timeout", "cancelled", "too_large"]
FileCode = Literal["not_found", "not_regular", "outside", "too_large", "io"]

# MIME types of displays.
TextForm = Literal["text/plain", "text/html", "image/svg+xml"]
ImageForm = Literal["image/png", "image/jpeg"]


# Of each kind. The guest's word is decoded before it is read.
_MOST_FACTS = 64


class Facts(Value, frozen=True):
    """What the guest measured of its isolation, before user code ran."""

    # Inodes by kind of namespace.
    namespaces: Annotated[dict[str, int], msgspec.Meta(max_length=_MOST_FACTS)]
    uid: int
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    interfaces: Annotated[list[str], msgspec.Meta(max_length=_MOST_FACTS)]
    root_writable: bool


class Enforcement(Value, frozen=True):
    """What holds a limit, such as ``cgroup``, and how often it looks. None if nothing does."""

    memory: str | None
    processes: str | None
    cpus: str | None


class ErrorInfo(Value, frozen=True):
    """The exception of a cell: class name, ``str()``, formatted traceback. Each is cut."""

    type: str
    message: str
    traceback: str


class CallError(Value, frozen=True):
    """A failed worker call."""

    code: CallCode
    message: str


class ToolFailure(Value, frozen=True):
    """A failed call of a host tool."""

    code: ToolCode
    message: str


class GuestTool(Value, frozen=True):
    """A function that runs in the guest."""

    name: str
    # Written by the host.
    pickle: bytes


class HostTool(Value, frozen=True):
    """A function that runs in the engine. Its index in ``Start`` is its number."""

    name: str
    doc: str


class FileEntry(Value, frozen=True):
    """A regular file below the working directory; ``size`` in bytes."""

    path: str
    size: int


class Usage(Value, frozen=True):
    """Processor seconds of the cell, and the sandbox's peak in bytes. 0 without a source."""

    cpu_seconds: float
    peak_memory: int
    # The kernel counts exactly. The watchdog samples.
    source: Literal["cgroup", "watchdog", "none"]


NOT_MEASURED = Usage(0.0, 0, "none")
