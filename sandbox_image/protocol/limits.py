"""Sizes that both ends know, and the limits of one sandbox."""

from __future__ import annotations

from .base import Value

HEADER_BYTES = 4
MAX_FRAME_BYTES = 64 << 20
"""No configuration may allow a larger frame."""

# malloc maps memory of 128 KiB and more for itself (mallopt(3), M_MMAP_THRESHOLD): three system calls more a message.
READ_BYTES = 64 << 10
"""Bytes that are read at once."""

TOOL_ARGUMENT_BYTES = 256 << 10
TOOL_RESULT_BYTES = 1 << 20
"""The largest arguments and the largest result of one call of a host tool, as JSON (see ``plain.py``)."""

MAX_DISPLAYS = 32
"""The most displays of one cell."""

LISTING_CHARS = 1 << 20
"""The most characters of paths in one list of files."""


class SessionLimits(Value, frozen=True):
    """What the shim checks. Bytes, counts and seconds; all positive, but for ``tools``, the number of the host's tools."""

    output_bytes: int
    display_bytes: int
    frame_bytes: int
    prompt_bytes: int
    batch: int
    pending_calls: int
    calls_per_second: float
    wall_seconds: float
    grace_seconds: float
    tools: int


class ResourceLimits(Value, frozen=True):
    """What the kernel enforces. Bytes, counts and seconds; all positive."""

    memory_bytes: int
    pids: int
    cpus: float
    cpu_seconds: int
    open_files: int
    file_bytes: int
    scratch_bytes: int
    scratch_inodes: int
