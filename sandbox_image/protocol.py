"""The wire protocol of supdist-engine. This file is the authority; ``VERSION`` changes when it does.

Three links, all bounded::

    engine <-> zygote   SOCK_SEQPACKET socketpair, one message a packet, descriptors beside it
    engine <-> shim     ZeroMQ ROUTER/DEALER, one message a ZeroMQ message; both ends are trusted
    shim   <-> guest    byte streams (a socketpair with the repl and one with init, or a container's stdio for both):
                        frames; the guest is hostile

A frame is a little-endian u32 length and as many bytes of payload. A payload is a MessagePack array
whose first item is the message's number, so the kind of a message can be read without decoding it.
Each direction of each link has one union of messages and one decoder: what is not in the union does
not exist for the receiver, and an item too many or of the wrong type is an error, not a default.

Ids. The engine numbers cells from 1. The guest numbers its calls from 1, strictly upwards; the shim
refuses an id that was used. What arrives for a cell that has ended is dropped and counted.

Text. Every ``str`` is UTF-8; lone surrogates cannot be sent. The guest replaces them with U+FFFD in
prompts and answers before they are sent. ``Output`` carries bytes, decoded by the engine alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Literal

import msgspec

VERSION = 4

HEADER_BYTES = 4
MAX_FRAME_BYTES = 64 << 20
"""No configuration may allow a larger frame."""
READ_BYTES = 64 << 10
"""What is read at once. Memory for 128 KiB and more malloc maps for itself (mallopt(3), M_MMAP_THRESHOLD): that would be
three system calls more for every message."""

ROOT = "/guest"
"""Where the zygote keeps the tree that becomes a sandbox's root (in its own mount namespace)."""

WORK = "/work"
"""The guest's working directory, its own and empty at the start."""

CONTEXT_FILE = "/context/data"
"""Where a container finds its context: a read-only mount."""

TOOL_ARGUMENT_BYTES = 256 << 10
TOOL_RESULT_BYTES = 1 << 20
"""The most that one call of a host tool may carry there and back, as JSON (see ``plain.py``)."""

MAX_DISPLAYS = 32
"""The most that one cell may show."""

LISTING_CHARS = 1 << 20
"""The most characters of paths in one list of files."""


class Outcome(StrEnum):
    """How a cell ended. The host decides it; nothing that a guest says does, but ``ok`` and ``user_error``."""

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
"""The forms in which a cell may show a value."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages and of the values in them: positional, closed, immutable."""


# Values


class Limits(Message, frozen=True):
    """What one sandbox may use. Bytes, counts and seconds; all positive. ``tools`` of the host it may call, from 0."""

    memory_bytes: int
    pids: int
    cpus: float
    cpu_seconds: int
    open_files: int
    file_bytes: int
    scratch_bytes: int
    scratch_inodes: int
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


class Facts(Message, frozen=True):
    """What the guest measured of its walls, before any code of a user ran in it.

    ``namespaces`` maps a namespace's kind to its inode; the shim compares them with its own.
    """

    namespaces: dict[str, int]
    uid: int
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    interfaces: list[str]
    root_writable: bool


class ErrorInfo(Message, frozen=True):
    """An exception that left a cell: its class's name, ``str()`` and formatted traceback, each cut to a size."""

    type: str
    message: str
    traceback: str


class CallError(Message, frozen=True):
    """A worker call without an answer; ``message`` is written by the host for the guest to read."""

    code: CallCode
    message: str


class ToolFailure(Message, frozen=True):
    """A call of a host tool without a result; ``message`` is written by the host for the guest to read."""

    code: ToolCode
    message: str


class GuestTool(Message, frozen=True):
    """A function that runs inside: a pickle that the host wrote."""

    name: str
    pickle: bytes


class HostTool(Message, frozen=True):
    """A function that runs in the engine, as the guest is told of it. Its number is its place in ``Start``."""

    name: str
    doc: str


class FileEntry(Message, frozen=True):
    """A regular file below the working directory, as the guest tells of it; ``size`` in bytes."""

    path: str
    size: int


# To the guest


class Start(Message, frozen=True, tag=1):
    """First of all: the question, the tools, and the limits that the guest's own library keeps before the shim
    enforces them.
    """

    query: str
    prompt_bytes: int
    batch: int
    frame_bytes: int
    display_bytes: int
    guest_tools: list[GuestTool]
    host_tools: list[HostTool]


class Load(Message, frozen=True, tag=2):
    """The context: ``text`` is UTF-8 (with surrogates passed through), ``object`` a pickle that the host wrote.

    ``source`` says where it lies: in the ``descriptor`` that init was given, in the ``file`` ``CONTEXT_FILE``, or in
    ``data``, which is empty otherwise.
    """

    kind: Literal["text", "object"]
    source: Literal["descriptor", "file", "frame"]
    data: bytes


class Execute(Message, frozen=True, tag=3):
    """Run a cell. ``timeout`` (seconds) is the shim's to keep; the guest may know it.

    The repl gets two descriptors beside it, for fd 1 and 2.
    """

    cell: int
    code: str
    timeout: float


class Reply(Message, frozen=True, tag=4):
    """The answers of a call, in the order of its prompts."""

    call: int
    results: list[str | CallError]


class Interrupt(Message, frozen=True, tag=5):
    """Raise KeyboardInterrupt in this cell, if it still runs."""

    cell: int


class PutFile(Message, frozen=True, tag=6):
    """Write ``data`` to a file below the working directory, from its start or at its end."""

    request: int
    path: str
    data: bytes
    append: bool


class GetFile(Message, frozen=True, tag=7):
    """Read at most ``size`` bytes of a regular file below the working directory."""

    request: int
    path: str
    offset: int
    size: int


class ListFiles(Message, frozen=True, tag=12):
    """Name at most ``most`` regular files below the working directory."""

    request: int
    most: int


class ToolReply(Message, frozen=True, tag=8):
    """The result of a call of a host tool, as JSON, or why there is none."""

    call: int
    result: bytes | ToolFailure


class Discard(Message, frozen=True, tag=9):
    """To init: read the pipes whose descriptors come beside this to their end, and throw away what comes."""


class HungUp(Message, frozen=True, tag=10):
    """To init: the repl closed its stream; see how it ends, and to it that it does."""


# From the guest


class Ready(Message, frozen=True, tag=20):
    """The guest has its context and waits for cells."""

    version: int
    facts: Facts


class Output(Message, frozen=True, tag=21):
    """Bytes that were written to fd 1 or 2 during a cell. Said to the shim by a container's init, and to the engine."""

    cell: int
    stream: Literal[1, 2]
    data: bytes


class Call(Message, frozen=True, tag=22):
    """Ask the worker model each of these prompts."""

    call: int
    cell: int
    prompts: list[str]


class ToolCall(Message, frozen=True, tag=27):
    """Call a host tool by its number. ``arguments`` is JSON: a list of those by place, and a dict of those by name.

    Calls of tools and of workers share their numbers.
    """

    call: int
    cell: int
    tool: int
    arguments: bytes


class Final(Message, frozen=True, tag=23):
    """The answer. One a cell."""

    cell: int
    answer: str


class Display(Message, frozen=True, tag=28):
    """A value that the cell shows, in one form or several. Nobody on the host looks into an image."""

    cell: int
    text: dict[TextForm, str]
    images: dict[ImageForm, bytes]


class Done(Message, frozen=True, tag=24):
    """The cell ended, with this exception or with none."""

    cell: int
    error: ErrorInfo | None


class FileData(Message, frozen=True, tag=26):
    """The answer to ``PutFile`` (no data) and ``GetFile``. Fewer bytes than were asked for are the file's last."""

    request: int
    data: bytes
    error: FileCode | None


class FileList(Message, frozen=True, tag=32):
    """The answer to ``ListFiles``: folder by folder, and whether there are more than these."""

    request: int
    files: list[FileEntry]
    more: bool


class ReplExit(Message, frozen=True, tag=25):
    """Init's last words: the repl ended with this wait status; or it closed its stream and had to be killed."""

    status: int
    hung_up: bool


# Shim and engine


class Hello(Message, frozen=True, tag=44):
    """The shim is connected. ``namespaces`` are its own, the host's, as in ``Facts``."""

    namespaces: dict[str, int]


class Kill(Message, frozen=True, tag=40):
    """End the sandbox now."""


class Usage(Message, frozen=True):
    """What a sandbox used: processor seconds of the cell, and the most bytes at once so far.

    ``source`` says who counted: the kernel (``cgroup``), the shim, by looking now and then (``watchdog``), or nobody
    here (``none``), as with a container of another machine; the figures are 0 then.
    """

    cpu_seconds: float
    peak_memory: int
    source: Literal["cgroup", "watchdog", "none"]


class CellEnd(Message, frozen=True, tag=41):
    """The shim's verdict on a cell, in seconds of its monotonic clock.

    ``dropped`` counts late frames; ``detail`` is the shim's wording of an end that was not the code's own.
    """

    cell: int
    outcome: Outcome
    error: ErrorInfo | None
    elapsed: float
    worker_wait: float
    truncated: bool
    state_lost: bool
    dropped: int
    detail: str
    usage: Usage


class Exit(Message, frozen=True, tag=42):
    """The sandbox is gone. Sent once, last. ``detail`` is the shim's wording, never the guest's."""

    outcome: Outcome
    detail: str


class SetupFailed(Message, frozen=True, tag=43):
    """A wall could not be built: ``step`` names it (see ``engine/jail/setup_errors.py``), ``errno`` says why."""

    step: str
    errno: int


# Engine and zygote


class Spawn(Message, frozen=True, tag=60):
    """Fork a shim for this session (its ZeroMQ routing id); a context's descriptor comes beside the packet."""

    session: bytes
    limits: Limits


class Attach(Message, frozen=True, tag=64):
    """Fork a shim for a guest that a container daemon runs; the stream that the daemon attached comes beside the packet.

    ``groups`` are the container's control groups, folders by controller (``engine/jail/cgroups.py``); empty where they
    cannot be seen from here.
    """

    session: bytes
    limits: Limits
    groups: dict[str, str]


class Abandon(Message, frozen=True, tag=63):
    """Kill this session's shim, whatever it is doing; its guest dies with it."""

    session: bytes


class ZygoteReady(Message, frozen=True, tag=61):
    """The zygote takes orders."""

    version: int


class NotForked(Message, frozen=True, tag=65):
    """There is no shim for this session: ``errno`` is what the kernel said to fork(2)."""

    session: bytes
    errno: int


class ShimExit(Message, frozen=True, tag=62):
    """A shim's process ended with this wait status; its guest died with it."""

    session: bytes
    status: int


ToGuest = (
    Start | Load | Execute | Reply | ToolReply | Interrupt | PutFile | GetFile | ListFiles | Discard | HungUp
)
FromGuest = Ready | Output | Display | Call | ToolCall | Final | Done | FileData | FileList | ReplExit
ToShim = Start | Load | Execute | Reply | ToolReply | Interrupt | PutFile | GetFile | ListFiles | Kill
FromShim = (
    Hello
    | Ready
    | Output
    | Display
    | Call
    | ToolCall
    | Final
    | FileData
    | FileList
    | CellEnd
    | Exit
    | SetupFailed
)
ToZygote = Spawn | Attach | Abandon
FromZygote = ZygoteReady | ShimExit | NotForked

encode = msgspec.msgpack.Encoder().encode
decode_to_guest: Callable[[bytes], ToGuest] = msgspec.msgpack.Decoder(ToGuest).decode
decode_from_guest: Callable[[bytes], FromGuest] = msgspec.msgpack.Decoder(FromGuest).decode
decode_to_shim: Callable[[bytes], ToShim] = msgspec.msgpack.Decoder(ToShim).decode
decode_from_shim: Callable[[bytes], FromShim] = msgspec.msgpack.Decoder(FromShim).decode
decode_to_zygote: Callable[[bytes], ToZygote] = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote: Callable[[bytes], FromZygote] = msgspec.msgpack.Decoder(FromZygote).decode


class Violation(Exception):
    """The peer broke the protocol. The text is ours and holds nothing that the peer sent."""


def kind(payload: bytes) -> int:
    """The number of a message: the item after the array's header. 0 for what cannot be a message."""
    return payload[1] if len(payload) > 1 else 0


def frame(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


class FrameBuffer:
    """Cuts a byte stream into payloads. Does no I/O.

    It never holds more than one frame of ``limit`` bytes and what was fed beside it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def frame(self, payload: bytes) -> bytes:
        """See the function of that name."""
        return frame(payload)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now.

        Raises:
            Violation: a frame announces more than ``limit`` bytes, or none.
        """
        self._data += data
        payloads: list[bytes] = []
        while len(self._data) >= HEADER_BYTES:
            size = int.from_bytes(self._data[:HEADER_BYTES], "little")
            if not 0 < size <= self._limit:
                raise Violation(f"a frame of {size} bytes where 1 to {self._limit} are allowed")
            end = HEADER_BYTES + size
            if len(self._data) < end:
                break
            with memoryview(self._data) as view:
                payloads.append(bytes(view[HEADER_BYTES:end]))
            del self._data[:end]
        return payloads
