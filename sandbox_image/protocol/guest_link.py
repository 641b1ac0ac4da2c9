"""Messages between shim and guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from .base import Message
from .limits import CALL_PROMPTS, LISTING_FILES, SessionLimits
from .values import (
    CallError,
    ErrorInfo,
    Facts,
    FileCode,
    FileEntry,
    GuestTool,
    HostTool,
    ImageForm,
    TextForm,
    ToolFailure,
)

# To the guest


class Start(Message, frozen=True):
    """The first message, with the limits that the guest's library keeps."""

    # None without a question.
    query: str | None
    has_context: bool
    has_worker: bool
    prompt_bytes: int
    batch: int
    frame_bytes: int
    display_bytes: int
    # Memory, not UTF-8: a character takes 1, 2 or 4 bytes, as the widest of its text does.
    answer_memory: int
    guest_tools: list[GuestTool]
    host_tools: list[HostTool]

    @classmethod
    def of(
        cls,
        limits: SessionLimits,
        query: str | None = None,
        guest_tools: Sequence[GuestTool] = (),
        host_tools: Sequence[HostTool] = (),
        *,
        has_context: bool = False,
        has_worker: bool = False,
    ) -> Start:
        """Return the message for a session's limits."""
        return cls(
            query,
            has_context,
            has_worker,
            limits.prompt_bytes,
            limits.batch,
            limits.frame_bytes,
            limits.display_bytes,
            limits.answer_memory,
            list(guest_tools),
            list(host_tools),
        )


class Load(Message, frozen=True):
    """The context."""

    # UTF-8 that may hold surrogates, or a pickle of the host.
    kind: Literal["text", "object"]
    # In the descriptor that init has, in CONTEXT_FILE, or in `data`, which is empty otherwise.
    source: Literal["descriptor", "file", "frame"]
    data: bytes


class Execute(Message, frozen=True):
    """Run a cell. The repl gets descriptors for fd 1 and 2 with it."""

    cell: int
    code: str
    # Seconds. The shim enforces it; the guest only knows it.
    timeout: float


class Reply(Message, frozen=True):
    """The answers to a call, in the order of its prompts."""

    call: int
    results: list[str | CallError]


class ReplyPart(Message, frozen=True):
    """Answers of a call before those of its ``Reply``, where all together are large."""

    call: int
    results: list[str | CallError]


class Interrupt(Message, frozen=True):
    """Raise KeyboardInterrupt in a cell that still runs."""

    cell: int


class PutFile(Message, frozen=True):
    """Replace or append to a file below the working directory."""

    request: int
    path: str
    data: bytes
    append: bool


class GetFile(Message, frozen=True):
    """Read a part of a regular file below the working directory."""

    request: int
    path: str
    offset: int
    size: int


class ToolReply(Message, frozen=True):
    """The result of a host tool, as JSON."""

    call: int
    result: bytes | ToolFailure


class Discard(Message, frozen=True):
    """To init: read and drop the data of the pipes that come with it."""


class HungUp(Message, frozen=True):
    """To init: the repl closed its stream. Kill it if it does not end in time."""


class ListFiles(Message, frozen=True):
    """List regular files below the working directory."""

    request: int
    most: int


# From the guest


class Ready(Message, frozen=True):
    """The guest has its context and takes cells."""

    version: int
    facts: Facts


class Output(Message, frozen=True):
    """Bytes of a cell's fd 1 or 2."""

    # Sent by a container's init. The shim itself reads the pipes of other guests.
    cell: int
    stream: Literal[1, 2]
    data: bytes


class Call(Message, frozen=True):
    """Ask the worker model these prompts."""

    call: int
    cell: int
    # The decoder checks lengths before it makes the items: a tiny item takes 30 times its bytes.
    prompts: Annotated[list[str], msgspec.Meta(max_length=CALL_PROMPTS)]


class Final(Message, frozen=True):
    """The answer, at most one for each cell."""

    cell: int
    answer: str


class Done(Message, frozen=True):
    """The cell ended."""

    cell: int
    error: ErrorInfo | None


class ReplExit(Message, frozen=True):
    """The last message of init: the repl's wait status."""

    status: int
    # Whether it closed its stream and had to be killed.
    hung_up: bool


class FileData(Message, frozen=True):
    """The answer to ``PutFile`` (no data) and ``GetFile``."""

    request: int
    # Fewer bytes than requested are the file's last.
    data: bytes
    error: FileCode | None


class ToolCall(Message, frozen=True):
    """Call a host tool."""

    # Tool and worker calls share one sequence.
    call: int
    cell: int
    tool: int
    # JSON: [positional, keyword].
    arguments: bytes


class Display(Message, frozen=True):
    """A value that the cell shows, in one or more forms."""

    cell: int
    text: dict[TextForm, str]
    # The host never decodes them.
    images: dict[ImageForm, bytes]


class FileList(Message, frozen=True):
    """The answer to ``ListFiles``; ``more`` says that it is cut."""

    request: int
    files: Annotated[list[FileEntry], msgspec.Meta(max_length=LISTING_FILES)]
    more: bool


ToGuest = (
    Start
    | Load
    | Execute
    | Reply
    | ReplyPart
    | ToolReply
    | Interrupt
    | PutFile
    | GetFile
    | ListFiles
    | Discard
    | HungUp
)
FromGuest = Ready | Output | Display | Call | ToolCall | Final | Done | FileData | FileList | ReplExit

decode_to_guest: Callable[[bytes], ToGuest] = msgspec.msgpack.Decoder(ToGuest).decode
decode_from_guest: Callable[[bytes], FromGuest] = msgspec.msgpack.Decoder(FromGuest).decode
