"""The messages between shim and guest. The guest is hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from .base import Message
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
    """The first message: the question, the tools, and the limits that the guest's own library keeps to."""

    query: str
    prompt_bytes: int
    batch: int
    frame_bytes: int
    display_bytes: int
    guest_tools: list[GuestTool]
    host_tools: list[HostTool]


class Load(Message, frozen=True):
    """The context: ``text`` is UTF-8 (with surrogates passed through), ``object`` a pickle that the host wrote.

    ``source`` is where it lies: in the ``descriptor`` that init was given, in the ``file`` ``CONTEXT_FILE``, or in
    ``data``, which is empty otherwise.
    """

    kind: Literal["text", "object"]
    source: Literal["descriptor", "file", "frame"]
    data: bytes


class Execute(Message, frozen=True):
    """Run a cell. The shim keeps ``timeout`` (seconds); the guest may know it.

    The repl gets two descriptors with it, for fd 1 and 2.
    """

    cell: int
    code: str
    timeout: float


class Reply(Message, frozen=True):
    """The answers of a call, in the order of its prompts."""

    call: int
    results: list[str | CallError]


class Interrupt(Message, frozen=True):
    """Raise KeyboardInterrupt in this cell, if it still runs."""

    cell: int


class PutFile(Message, frozen=True):
    """Write ``data`` to a file below the working directory, from its start or at its end."""

    request: int
    path: str
    data: bytes
    append: bool


class GetFile(Message, frozen=True):
    """Read at most ``size`` bytes of a regular file below the working directory."""

    request: int
    path: str
    offset: int
    size: int


class ToolReply(Message, frozen=True):
    """The result of a call of a host tool, as JSON, or why there is none."""

    call: int
    result: bytes | ToolFailure


class Discard(Message, frozen=True):
    """To init: read the pipes that come with this message to their end, and drop what they hold."""


class HungUp(Message, frozen=True):
    """To init: the repl closed its stream. Wait for it, kill it after a deadline, and report its end."""


class ListFiles(Message, frozen=True):
    """List at most ``most`` regular files below the working directory."""

    request: int
    most: int


# From the guest


class Ready(Message, frozen=True):
    """The guest has its context and waits for cells."""

    version: int
    facts: Facts


class Output(Message, frozen=True):
    """Bytes that were written to fd 1 or 2 during a cell. A container's init sends it to the shim, the shim to the engine."""

    cell: int
    stream: Literal[1, 2]
    data: bytes


class Call(Message, frozen=True):
    """Ask the worker model each of these prompts."""

    call: int
    cell: int
    prompts: list[str]


class Final(Message, frozen=True):
    """The answer. One a cell."""

    cell: int
    answer: str


class Done(Message, frozen=True):
    """The cell ended, with this exception or with none."""

    cell: int
    error: ErrorInfo | None


class ReplExit(Message, frozen=True):
    """The last message of init: the wait status of the repl, and whether it had to be killed after it closed its stream."""

    status: int
    hung_up: bool


class FileData(Message, frozen=True):
    """The answer to ``PutFile`` (no data) and ``GetFile``. Fewer bytes than were asked for are the file's last."""

    request: int
    data: bytes
    error: FileCode | None


class ToolCall(Message, frozen=True):
    """Call a host tool by its number.

    ``arguments`` is JSON: a list of those by place, and a dict of those by name. Calls of tools and of workers share
    their numbers.
    """

    call: int
    cell: int
    tool: int
    arguments: bytes


class Display(Message, frozen=True):
    """A value that the cell shows, in one form or several. The host never opens an image."""

    cell: int
    text: dict[TextForm, str]
    images: dict[ImageForm, bytes]


class FileList(Message, frozen=True):
    """The answer to ``ListFiles``: folder by folder, and whether there are more than these."""

    request: int
    files: list[FileEntry]
    more: bool


ToGuest = (
    Start | Load | Execute | Reply | ToolReply | Interrupt | PutFile | GetFile | ListFiles | Discard | HungUp
)
FromGuest = Ready | Output | Display | Call | ToolCall | Final | Done | FileData | FileList | ReplExit

decode_to_guest: Callable[[bytes], ToGuest] = msgspec.msgpack.Decoder(ToGuest).decode
decode_from_guest: Callable[[bytes], FromGuest] = msgspec.msgpack.Decoder(FromGuest).decode
