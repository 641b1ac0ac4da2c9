"""Messages between engine and shim: checked ones of the guest, and the shim's own."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .base import Message
from .guest_link import (
    Call,
    Display,
    Execute,
    FileData,
    FileList,
    Final,
    GetFile,
    Interrupt,
    ListFiles,
    Load,
    Output,
    PutFile,
    Ready,
    Reply,
    ReplyPart,
    Start,
    ToolCall,
    ToolReply,
)
from .values import Enforcement, ErrorInfo, Outcome, Usage


class Kill(Message, frozen=True):
    """End the sandbox now."""


class CellEnd(Message, frozen=True):
    """The shim's verdict on a cell. Times are in seconds."""

    cell: int
    outcome: Outcome
    error: ErrorInfo | None
    elapsed: float
    worker_wait: float
    truncated: bool
    state_lost: bool
    # How many late frames were dropped.
    dropped: int
    # The shim's own text, for an end that the code did not cause.
    detail: str
    usage: Usage


class Exit(Message, frozen=True):
    """The sandbox is gone. The last message."""

    outcome: Outcome
    # The shim's text, never the guest's.
    detail: str


class SetupFailed(Message, frozen=True):
    """The isolation cannot be built."""

    # A key of `engine/jail/setup_errors.py`.
    step: str
    errno: int


class Hello(Message, frozen=True):
    """The shim is connected, with the host's namespaces as in ``Facts``."""

    namespaces: dict[str, int]
    enforcement: Enforcement


class Taken(Message, frozen=True):
    """The guest has taken so many more bytes of replies. Sent once for many small ones."""

    count: int


ToShim = (
    Start | Load | Execute | Reply | ReplyPart | ToolReply | Interrupt | PutFile | GetFile | ListFiles | Kill
)
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
    | Taken
)

decode_to_shim: Callable[[bytes], ToShim] = msgspec.msgpack.Decoder(ToShim).decode
decode_from_shim: Callable[[bytes], FromShim] = msgspec.msgpack.Decoder(FromShim).decode
