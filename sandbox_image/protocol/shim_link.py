"""The messages between engine and shim: those of the guest after their check, and the shim's own."""

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
    Start,
    ToolCall,
    ToolReply,
)
from .values import ErrorInfo, Outcome, Usage


class Kill(Message, frozen=True):
    """End the sandbox now."""


class CellEnd(Message, frozen=True):
    """The shim's verdict on a cell. Times are seconds of its monotonic clock.

    ``dropped`` counts late frames. ``detail`` is the shim's text for an end that the code did not cause.
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


class Exit(Message, frozen=True):
    """The sandbox is gone. Sent once, last. ``detail`` is the shim's text, never the guest's."""

    outcome: Outcome
    detail: str


class SetupFailed(Message, frozen=True):
    """The isolation cannot be built: the ``step`` that failed (``engine/jail/setup_errors.py``) and its ``errno``."""

    step: str
    errno: int


class Hello(Message, frozen=True):
    """The shim is connected. ``namespaces`` are its own, the host's, as in ``Facts``."""

    namespaces: dict[str, int]


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

decode_to_shim: Callable[[bytes], ToShim] = msgspec.msgpack.Decoder(ToShim).decode
decode_from_shim: Callable[[bytes], FromShim] = msgspec.msgpack.Decoder(FromShim).decode
