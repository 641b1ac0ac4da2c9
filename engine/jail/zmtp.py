"""What ZeroMQ's DEALER and ROUTER say on a stream: ZMTP 3.1 with the NULL mechanism (ZeroMQ RFC 37). Does no I/O.

A shim is a DEALER, the engine their ROUTER. libzmq would be, at a shim's end, two threads for every sandbox; at the
engine's, one that stands between the event loop and the socket: two more sleepers to wake for each call and its reply.
"""

from __future__ import annotations

import struct
from typing import Literal

from ...sandbox_image.protocol import Violation

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = struct.Struct(">B8xBBB20sB31x")  # signature, version, mechanism, as-server, filler
_READY = b"\x05READY"
_OURS = _GREETING.pack(0xFF, 0x7F, 3, 1, b"NULL", 0)
_SERVES = {b"DEALER": b"ROUTER", b"ROUTER": b"DEALER"}


class Peer:
    """A connection's bytes: those that open it, messages of one frame, and those cut from what comes.

    Args:
        kind: what this end is; the other must be the other kind.
        limit: bytes of a message.
        routing_id: the name by which a ROUTER is to know this end.

    Attributes:
        handshake: the bytes to begin with. The next may be written when the other end ``is_ready``: what comes sooner
            libzmq takes for a part of the handshake.
        routing_id: the name that the other end gave itself, if any.
    """

    def __init__(self, kind: Literal[b"DEALER", b"ROUTER"], limit: int, routing_id: bytes = b"") -> None:
        body = _READY + _property(b"Socket-Type", kind) + _property(b"Identity", routing_id)
        self.handshake = _OURS + bytes([_COMMAND, len(body)]) + body
        self.routing_id = b""
        self._other_kind = _SERVES[kind]
        self._limit = limit
        self._data = bytearray()
        self._is_greeted = self.is_ready = False

    def frame(self, payload: bytes) -> bytes:
        """A message as bytes."""
        size = len(payload)
        if size < 256:
            return bytes((0, size)) + payload
        return struct.pack(">BQ", _LONG, size) + payload

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now.

        Raises:
            Violation: the other end is not of the kind that it should be, or a message has several frames or more
                than ``limit`` bytes.
        """
        self._data += data
        if not self._is_greeted:
            if len(self._data) < _GREETING.size:
                return []
            self._greet()
        messages: list[bytes] = []
        at = 0
        with memoryview(self._data) as view:
            while (found := self._cut(view, at)) is not None:
                flags, start, at = found
                body = bytes(view[start:at])
                if flags & _COMMAND:
                    self._obey(body)
                elif self.is_ready:
                    messages.append(body)
                else:
                    raise Violation("a message of ZMTP before the handshake's end")
        del self._data[:at]
        return messages

    def _greet(self) -> None:
        signature, _, major, _, mechanism, _ = _GREETING.unpack_from(self._data)
        if signature != 0xFF or major < 3 or mechanism.rstrip(b"\0") != b"NULL":
            raise Violation("the other end does not speak ZMTP 3")
        del self._data[: _GREETING.size]
        self._is_greeted = True

    def _obey(self, command: bytes) -> None:
        if not command.startswith(_READY):  # no other was agreed upon
            return
        said = _properties(command[len(_READY) :])
        if said.get(b"socket-type") != self._other_kind:
            raise Violation("the other end is a socket of another kind")
        self.routing_id = said.get(b"identity", b"")
        self.is_ready = True

    def _cut(self, view: memoryview, at: int) -> tuple[int, int, int] | None:
        """The flags of the frame that begins there, and its body's start and end; None where it is not complete."""
        if len(view) < at + 2:
            return None
        flags, size, start = view[at], view[at + 1], at + 2
        if flags & _LONG:
            start = at + 9
            if len(view) < start:
                return None
            size = int.from_bytes(view[at + 1 : start], "big")
        if flags & _MORE or size > self._limit:
            raise Violation("a message that has several frames, or is too large")
        return (flags, start, start + size) if len(view) >= start + size else None


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    """By their names in small letters: in which case those are written means nothing."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        value = at + 1 + data[at] + 4
        end = value + int.from_bytes(data[value - 4 : value], "big")
        if end > len(data):
            raise Violation("a property of ZMTP that ends outside of its command")
        found[data[at + 1 : value - 4].lower()] = data[value:end]
        at = end
    return found
