"""Frames: a payload with its length in front."""

from __future__ import annotations

from .limits import HEADER_BYTES


class Violation(Exception):
    """The peer broke the protocol. The text is ours and holds nothing that the peer sent."""


def frame(payload: bytes) -> bytes:
    """Return a payload with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


class FrameBuffer:
    """Cuts a byte stream into payloads. Does no I/O.

    It never holds more than one frame of ``limit`` bytes and what was fed beside it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def frame(self, payload: bytes) -> bytes:
        """See the function of that name."""
        return frame(payload)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes and return the payloads that are complete now.

        Raises:
            Violation: a frame announces more than ``limit`` bytes, or none.
        """
        self._data += data
        payloads: list[bytes] = []
        while len(self._data) >= HEADER_BYTES:
            size = int.from_bytes(self._data[:HEADER_BYTES], "little")
            # Before anything of the frame is kept: its length is the peer's word.
            if not 0 < size <= self._limit:
                raise Violation(f"a frame of {size} bytes where 1 to {self._limit} are allowed")
            end = HEADER_BYTES + size
            if len(self._data) < end:
                break
            with memoryview(self._data) as view:
                payloads.append(bytes(view[HEADER_BYTES:end]))
            del self._data[:end]
        return payloads
