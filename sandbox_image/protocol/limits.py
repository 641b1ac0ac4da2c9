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

# For all paths of one list together, and for its files.
LISTING_CHARS = 1 << 20
LISTING_FILES = 20_000

# Of one message. The guest's library cuts a longer list of prompts into several, and sends a prompt above
# these bytes alone.
CALL_PROMPTS = 256
CALL_BYTES = 1 << 20

# As UTF-8.
ANSWER_BYTES = 8 << 20
# What a frame holds besides one prompt, display, answer or piece of a file.
_ENVELOPE_BYTES = 256 << 10


# A result holds an error and a short answer, however small the output.
_LEAST_RESULT = 256 << 10


def result_bytes(output_bytes: int) -> int:
    """Return the most memory of a cell's result, for its limit on each output."""
    return max(_LEAST_RESULT, 4 * output_bytes)


class SessionLimits(Value, frozen=True):
    """What the shim enforces. All positive; ``tools``, the number of host tools, may be 0."""

    output_bytes: int
    # Memory of what a cell's result holds in all: decoded text, displays, answer, error.
    result_bytes: int
    display_bytes: int
    frame_bytes: int
    prompt_bytes: int
    batch: int
    pending_calls: int
    calls_per_second: float
    wall_seconds: float
    grace_seconds: float
    tools: int

    @property
    def answer_memory(self) -> int:
        """The most memory of an answer: half of a result, and a string's own header."""
        return self.result_bytes // 2 + 128

    @property
    def guest_frame_bytes(self) -> int:
        """The largest frame that a guest has a reason to send."""
        largest = max(ANSWER_BYTES, self.display_bytes, self.prompt_bytes, CALL_BYTES)
        return min(self.frame_bytes, largest + _ENVELOPE_BYTES)


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
