"""The wire protocol. This package is the authority; every change of it changes ``VERSION``.

Links, all of them bounded::

    engine-zygote   SOCK_SEQPACKET   trusted        one message a packet, descriptors beside it
    engine-shim     ZeroMQ           trusted        one message each
    shim-process    SOCK_SEQPACKET   set-up only    one message a packet
    shim-guest      byte streams     hostile        frames: streams of repl and init, or a container's stdio

Frame: a little-endian u32 length, then the payload.
Payload: a MessagePack array that begins with the message's number.
Union: each direction has one decoder. It refuses unknown messages, extra items and wrong types.
Fields: none has a default.
Ids: the engine numbers cells from 1, the guest its calls; both rise strictly. The shim refuses used ones.
Late: a message of an ended cell is dropped and counted.
Text: ``str`` is UTF-8 without lone surrogates. ``Output`` holds bytes, decoded only by the engine.
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
    ReplyPart,
    Start,
    ToGuest,
    ToolCall,
    ToolReply,
    decode_from_guest,
    decode_to_guest,
)
from .limits import (
    ANSWER_BYTES,
    CALL_BYTES,
    CALL_PROMPTS,
    HEADER_BYTES,
    LISTING_CHARS,
    LISTING_FILES,
    MAX_DISPLAYS,
    MAX_FRAME_BYTES,
    READ_BYTES,
    TOOL_ARGUMENT_BYTES,
    TOOL_RESULT_BYTES,
    ResourceLimits,
    SessionLimits,
    result_bytes,
)
from .values import (
    CONTEXT_FILE,
    NOT_MEASURED,
    ROOT,
    WORK,
    CallCode,
    CallError,
    Enforcement,
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
        SocketList,
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
        Taken,
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

VERSION = 7


def __getattr__(name: str) -> object:
    # A guest needs no link of the host. Without them its import takes a millisecond less.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import setup_link, shim_link, zygote_link

    for link in (setup_link, shim_link, zygote_link):
        globals().update({each: vars(link)[each] for each in __all__ if each in vars(link)})
    return globals()[name]


__all__ = [
    "ANSWER_BYTES",
    "CALL_BYTES",
    "CALL_PROMPTS",
    "CONTEXT_FILE",
    "HEADER_BYTES",
    "LISTING_CHARS",
    "LISTING_FILES",
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
    "Enforcement",
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
    "ReplyPart",
    "ResourceLimits",
    "SessionLimits",
    "SetupFailed",
    "ShimExit",
    "SocketList",
    "Spawn",
    "Start",
    "Taken",
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
    "result_bytes",
    "tag",
]
