"""Fixed sizes, and the limits of one sandbox."""

from __future__ import annotations

from .base import Value

HEADER_BYTES = 4
# No configuration may allow a larger frame.
MAX_FRAME_BYTES = 64 << 20

# malloc maps 128 KiB and more apart (mallopt(3), M_MMAP_THRESHOLD): three system calls more a message.
READ_BYTES = 64 << 10

# As JSON, for one call of a host tool.
TOOL_ARGUMENT_BYTES = 256 << 10
TOOL_RESULT_BYTES = 1 << 20

# For each cell.
MAX_DISPLAYS = 32

# For all paths of one list together.
LISTING_CHARS = 1 << 20


class SessionLimits(Value, frozen=True):
    """What the shim enforces. All positive; ``tools``, the number of host tools, may be 0."""

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
    """What the kernel enforces. All positive."""

    memory_bytes: int
    pids: int
    cpus: float
    cpu_seconds: int
    open_files: int
    file_bytes: int
    scratch_bytes: int
    scratch_inodes: int
