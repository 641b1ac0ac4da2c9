"""ZMTP 3.1 with the NULL mechanism (ZeroMQ RFC 37), without I/O."""

from __future__ import annotations

import mmap
import struct
from typing import Literal, cast

from ...sandbox_image.protocol import Violation

_MORE, _LONG, _COMMAND = 1, 2, 4
# Signature, version (major, minor), mechanism, as-server, filler.
_GREETING = struct.Struct(">B8xBBB20sB31x")
# Flags and size of a long frame.
_LARGE_HEADER = struct.Struct(">BQ")
_READY = b"\x05READY"
_OUR_GREETING = _GREETING.pack(0xFF, 0x7F, 3, 1, b"NULL", 0)
# A larger message is collected in memory of its own, whose pages come as they are written. Growing and
# copying a bytearray of 64 MiB would stop the event loop for 50 ms.
_LARGE_BYTES = 1 << 20
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
        self._large: memoryview | None = None
        self._missing = 0
        self._is_greeted = self.is_ready = False

    def frame(self, payload: bytes) -> bytes:
        """Encode a message."""
        return self.header(len(payload)) + payload

    def header(self, size: int) -> bytes:
        """Return what is sent before a message of this size."""
        return bytes((0, size)) if size < 256 else _LARGE_HEADER.pack(_LONG, size)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete now; those above 1 MiB are of type ``memoryview``.

        Raises:
            Violation: a wrong kind, several frames, or more than ``limit`` bytes.
        """
        messages: list[bytes] = []
        if self._large is not None:
            data = self._add_to_large(data, messages)
        self._data += data
        if not self._is_greeted:
            if len(self._data) < _GREETING.size:
                return []
            self._check_greeting()
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
        self._begin_large()
        return messages

    def _begin_large(self) -> None:
        # What is left is the start of one frame; its header was checked.
        if len(self._data) < _LARGE_HEADER.size or not self._data[0] & _LONG or not self.is_ready:
            return
        flags, size = _LARGE_HEADER.unpack_from(self._data)
        if size <= _LARGE_BYTES or flags & _COMMAND:
            return
        start = bytes(self._data[_LARGE_HEADER.size :])
        self._data.clear()
        self._large, self._missing = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)), size
        self._add_to_large(start, [])

    def _add_to_large(self, data: bytes, messages: list[bytes]) -> bytes:
        # Returns what belongs to the next frame.
        assert self._large is not None
        at = len(self._large) - self._missing
        part = data[: self._missing]
        self._large[at : at + len(part)] = part
        self._missing -= len(part)
        if not self._missing:
            # Decoders read it like bytes.
            messages.append(cast("bytes", self._large))
            self._large = None
        return data[len(part) :]

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
