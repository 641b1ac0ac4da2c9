"""The base classes, numbers and encoder of messages."""

from __future__ import annotations

import msgspec

# The messages of each direction, in order, by the number of its first. VERSION changes with an order.
_NUMBERED = {
    # To the guest.
    1: (
        "Start", "Load", "Execute", "Reply", "Interrupt", "PutFile", "GetFile", "ToolReply", "Discard",
        "HungUp", "ListFiles", "ReplyPart",
    ),
    # From the guest.
    20: (
        "Ready", "Output", "Call", "Final", "Done", "ReplExit", "FileData", "ToolCall", "Display", "FileList",
    ),
    # Between shim and engine.
    40: ("Kill", "CellEnd", "Exit", "SetupFailed", "Hello", "Taken"),
    # Between engine and zygote.
    60: ("Spawn", "ZygoteReady", "ShimExit", "Abandon", "Attach", "NotForked"),
    # Between shim and isolated process.
    80: ("Placed", "ApplyLimits", "SocketList"),
}  # fmt: skip

# One space of numbers: a decoder of the shim or the engine takes messages of several rows.
_TAGS = {
    "Message": 0,
    **{name: first + place for first, names in _NUMBERED.items() for place, name in enumerate(names)},
}


class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of values in messages: positional, closed, immutable."""


class Message(Value, frozen=True, tag=_TAGS.__getitem__):
    """Base of messages."""


def tag(message: type[Message]) -> int:
    """Return the number of a message type."""
    number = message.__struct_config__.tag
    assert isinstance(number, int)
    return number


def kind(payload: bytes) -> int:
    """Return the number of an encoded message; 0 if it is too short."""
    # Numbers are below 128 and arrays below 16 items: each takes one byte, so no decoding is needed.
    return payload[1] if len(payload) > 1 else 0


encode = msgspec.msgpack.Encoder().encode
