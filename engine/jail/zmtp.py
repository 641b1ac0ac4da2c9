"""ZMTP 3.1 with the NULL mechanism (ZeroMQ RFC 37), without I/O."""

from __future__ import annotations

import struct
from typing import Literal

from ...sandbox_image.protocol import Violation

_MORE, _LONG, _COMMAND = 1, 2, 4
# Signature, version (major, minor), mechanism, as-server, filler.
_GREETING = struct.Struct(">B8xBBB20sB31x")
_READY = b"\x05READY"
_OUR_GREETING = _GREETING.pack(0xFF, 0x7F, 3, 1, b"NULL", 0)
_OTHER_KIND = {b"DEALER": b"ROUTER", b"ROUTER": b"DEALER"}


class ZmtpConnection:
    """One end of a connection, for messages of one frame.

    Args:
        limit: the most bytes of a message.
        routing_id: its name for a ROUTER.

    Attributes:
        handshake: the first bytes to send; others only after ``is_ready``.
        routing_id: the other end's name, if any.
    """

    def __init__(self, kind: Literal[b"DEALER", b"ROUTER"], limit: int, routing_id: bytes = b"") -> None:
        body = _READY + _property(b"Socket-Type", kind) + _property(b"Identity", routing_id)
        # libzmq takes bytes that come before the end of the handshake for a part of it.
        self.handshake = _OUR_GREETING + bytes([_COMMAND, len(body)]) + body
        self.routing_id = b""
        self._other_kind = _OTHER_KIND[kind]
        self._limit = limit
        self._data = bytearray()
        self._is_greeted = self.is_ready = False

    def frame(self, payload: bytes) -> bytes:
        """Encode a message."""
        size = len(payload)
        if size < 256:
            return bytes((0, size)) + payload
        return struct.pack(">BQ", _LONG, size) + payload

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete now.

        Raises:
            Violation: a wrong kind, several frames, or more than ``limit`` bytes.
        """
        self._data += data
        if not self._is_greeted:
            if len(self._data) < _GREETING.size:
                return []
            self._check_greeting()
        messages: list[bytes] = []
        at = 0
        with memoryview(self._data) as view:
            while (found := self._cut(view, at)) is not None:
                flags, start, at = found
                body = bytes(view[start:at])
                if flags & _COMMAND:
                    self._read_command(body)
                elif self.is_ready:
                    messages.append(body)
                else:
                    raise Violation("a ZMTP message before the end of the handshake")
        del self._data[:at]
        return messages

    def _check_greeting(self) -> None:
        signature, _, major, _, mechanism, _ = _GREETING.unpack_from(self._data)
        if signature != 0xFF or major < 3 or mechanism.rstrip(b"\0") != b"NULL":
            raise Violation("the other end does not use ZMTP 3 without encryption")
        del self._data[: _GREETING.size]
        self._is_greeted = True

    def _read_command(self, command: bytes) -> None:
        # Only READY matters without a mechanism and without heartbeats.
        if not command.startswith(_READY):
            return
        properties = _properties(command[len(_READY) :])
        if properties.get(b"socket-type") != self._other_kind:
            raise Violation("the other end is a socket of the wrong kind")
        self.routing_id = properties.get(b"identity", b"")
        self.is_ready = True

    # Flags of the frame at `at`, and where its body starts and ends; None if incomplete.
    def _cut(self, view: memoryview, at: int) -> tuple[int, int, int] | None:
        if len(view) < at + 2:
            return None
        flags, size, start = view[at], view[at + 1], at + 2
        if flags & _LONG:
            start = at + 9
            if len(view) < start:
                return None
            size = int.from_bytes(view[at + 1 : start], "big")
        # Checked as soon as the header is there, before the body is collected.
        if flags & _MORE:
            raise Violation("a ZMTP message of several frames; one frame is allowed")
        if size > self._limit:
            raise Violation(f"a ZMTP message of {size} bytes; at most {self._limit} are allowed")
        return (flags, start, start + size) if len(view) >= start + size else None


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        value = at + 1 + data[at] + 4
        end = value + int.from_bytes(data[value - 4 : value], "big")
        if end > len(data):
            raise Violation("a ZMTP property that ends outside of its command")
        # Names ignore case (RFC 37).
        found[data[at + 1 : value - 4].lower()] = data[value:end]
        at = end
    return found
