"""The wire protocol of supdist-engine. This package is the authority; ``VERSION`` changes when it does.

Four links, all bounded::

    engine <-> zygote   SOCK_SEQPACKET socketpair, one message a packet, descriptors beside it
    engine <-> shim     ZeroMQ ROUTER/DEALER, one message a ZeroMQ message; both ends are trusted
    shim   <-> process  SOCK_SEQPACKET socketpair, while the process is set up; one message a packet
    shim   <-> guest    byte streams of frames: one with the repl and one with init, or a container's stdio for both;
                        the guest is hostile

Frames. A frame is a little-endian u32 length and as many bytes of payload. A payload is a MessagePack array. Its first
item is the number of the message (``base.py``), so ``kind`` needs no decoding.

Unions. Each direction of each link has one union of messages and one decoder. A message outside the union is an error,
and so is an item too many or of the wrong type. There are no defaults.

Ids. The engine numbers cells from 1. The guest numbers its calls from 1, strictly upwards; the shim refuses a used id.
A message of a cell that has ended is dropped and counted.

Text. Every ``str`` is UTF-8; lone surrogates cannot be sent. The guest replaces them with U+FFFD in prompts and answers.
``Output`` carries bytes; only the engine decodes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import (
    Message,
    Value,
    encode,
    kind,
    tag,
)
from .framing import (
    FrameBuffer,
    Violation,
    frame,
)
from .guest_link import (
    Call,
    Discard,
    Display,
    Done,
    Execute,
    FileData,
    FileList,
    Final,
    FromGuest,
    GetFile,
    HungUp,
    Interrupt,
    ListFiles,
    Load,
    Output,
    PutFile,
    Ready,
    ReplExit,
    Reply,
    Start,
    ToGuest,
    ToolCall,
    ToolReply,
    decode_from_guest,
    decode_to_guest,
)
from .limits import (
    HEADER_BYTES,
    LISTING_CHARS,
    MAX_DISPLAYS,
    MAX_FRAME_BYTES,
    READ_BYTES,
    TOOL_ARGUMENT_BYTES,
    TOOL_RESULT_BYTES,
    ResourceLimits,
    SessionLimits,
)
from .values import (
    CONTEXT_FILE,
    NOT_MEASURED,
    ROOT,
    WORK,
    CallCode,
    CallError,
    ErrorInfo,
    Facts,
    FileCode,
    FileEntry,
    GuestTool,
    HostTool,
    ImageForm,
    Outcome,
    TextForm,
    ToolCode,
    ToolFailure,
    Usage,
)

if TYPE_CHECKING:
    from .setup_link import (
        SETUP_PACKET_BYTES,
        ApplyLimits,
        FromIsolated,
        Placed,
        ToIsolated,
        decode_from_isolated,
        decode_to_isolated,
    )
    from .shim_link import (
        CellEnd,
        Exit,
        FromShim,
        Hello,
        Kill,
        SetupFailed,
        ToShim,
        decode_from_shim,
        decode_to_shim,
    )
    from .zygote_link import (
        Abandon,
        Attach,
        FromZygote,
        NotForked,
        ShimExit,
        Spawn,
        ToZygote,
        ZygoteReady,
        decode_from_zygote,
        decode_to_zygote,
    )

VERSION = 5


def __getattr__(name: str) -> object:
    # A guest needs no link of the host. Without them its import takes a millisecond less.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import setup_link, shim_link, zygote_link

    for link in (setup_link, shim_link, zygote_link):
        globals().update({each: vars(link)[each] for each in __all__ if each in vars(link)})
    return globals()[name]


__all__ = [
    "CONTEXT_FILE",
    "HEADER_BYTES",
    "LISTING_CHARS",
    "MAX_DISPLAYS",
    "MAX_FRAME_BYTES",
    "NOT_MEASURED",
    "READ_BYTES",
    "ROOT",
    "SETUP_PACKET_BYTES",
    "TOOL_ARGUMENT_BYTES",
    "TOOL_RESULT_BYTES",
    "VERSION",
    "WORK",
    "Abandon",
    "ApplyLimits",
    "Attach",
    "Call",
    "CallCode",
    "CallError",
    "CellEnd",
    "Discard",
    "Display",
    "Done",
    "ErrorInfo",
    "Execute",
    "Exit",
    "Facts",
    "FileCode",
    "FileData",
    "FileEntry",
    "FileList",
    "Final",
    "FrameBuffer",
    "FromGuest",
    "FromIsolated",
    "FromShim",
    "FromZygote",
    "GetFile",
    "GuestTool",
    "Hello",
    "HostTool",
    "HungUp",
    "ImageForm",
    "Interrupt",
    "Kill",
    "ListFiles",
    "Load",
    "Message",
    "NotForked",
    "Outcome",
    "Output",
    "Placed",
    "PutFile",
    "Ready",
    "ReplExit",
    "Reply",
    "ResourceLimits",
    "SessionLimits",
    "SetupFailed",
    "ShimExit",
    "Spawn",
    "Start",
    "TextForm",
    "ToGuest",
    "ToIsolated",
    "ToShim",
    "ToZygote",
    "ToolCall",
    "ToolCode",
    "ToolFailure",
    "ToolReply",
    "Usage",
    "Value",
    "Violation",
    "ZygoteReady",
    "decode_from_guest",
    "decode_from_isolated",
    "decode_from_shim",
    "decode_from_zygote",
    "decode_to_guest",
    "decode_to_isolated",
    "decode_to_shim",
    "decode_to_zygote",
    "encode",
    "frame",
    "kind",
    "tag",
]
