"""What ZeroMQ's DEALER says on a stream: ZMTP 3.1 with the NULL mechanism (ZeroMQ RFC 37). Does no I/O.

The engine's end is a ROUTER of libzmq. libzmq at this end, too, would be two threads for every sandbox: to start, to hold, and
to wake for each message on its way.
"""

from __future__ import annotations

import struct

from ..protocol import Violation

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = struct.Struct(">B8xBBB20sB31x")  # signature, version, mechanism, as-server, filler
_READY = b"\x05READY"
_OURS = _GREETING.pack(0xFF, 0x7F, 3, 1, b"NULL", 0)


class Dealer:
    """A connection's bytes: those that open it, messages of one frame, and those cut from what comes.

    Args:
        routing_id: the name by which the ROUTER sends to it.
        limit: bytes of a message.

    Attributes:
        opening: the bytes to begin with. The next may be written when the other end ``is_ready``: what comes sooner
            libzmq takes for a part of the handshake.
    """

    def __init__(self, routing_id: bytes, limit: int) -> None:
        body = _READY + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", routing_id)
        self.opening = _OURS + bytes([_COMMAND, len(body)]) + body
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
            Violation: this is no ROUTER, or a message has several frames or more than ``limit`` bytes.
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
                if not flags & _COMMAND:
                    messages.append(body)
                elif body.startswith(_READY):  # no other command was agreed upon
                    self.is_ready = True
        del self._data[:at]
        return messages

    def _greet(self) -> None:
        signature, _, major, _, mechanism, _ = _GREETING.unpack_from(self._data)
        if signature != 0xFF or major < 3 or mechanism.rstrip(b"\0") != b"NULL":
            raise Violation("the engine's socket does not speak ZMTP 3")
        del self._data[: _GREETING.size]
        self._is_greeted = True

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
            raise Violation("a message of the engine that has several frames, or is too large")
        return (flags, start, start + size) if len(view) >= start + size else None


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
