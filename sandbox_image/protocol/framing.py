"""Cut byte streams into frames."""

from __future__ import annotations

from .limits import HEADER_BYTES


class Violation(Exception):
    """The peer broke the protocol."""

    # The text never quotes the peer: people and models read it.


def frame(payload: bytes) -> bytes:
    """Return the payload with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


class FrameBuffer:
    """Cuts a byte stream into payloads of at most ``limit`` bytes, without I/O."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def frame(self, payload: bytes) -> bytes:
        """See ``frame``."""
        return frame(payload)

    def header(self, size: int) -> bytes:
        """Return what is sent before a payload of this size."""
        return size.to_bytes(HEADER_BYTES, "little")

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the payloads that are complete.

        Raises:
            Violation: a frame is empty or above the limit.
        """
        self._data += data
        payloads: list[bytes] = []
        while len(self._data) >= HEADER_BYTES:
            size = int.from_bytes(self._data[:HEADER_BYTES], "little")
            # Checked before the frame is collected: a hostile length must not make the buffer grow.
            if not 0 < size <= self._limit:
                raise Violation(f"a frame of {size} bytes where 1 to {self._limit} are allowed")
            end = HEADER_BYTES + size
            if len(self._data) < end:
                break
            with memoryview(self._data) as view:
                payloads.append(bytes(view[HEADER_BYTES:end]))
            del self._data[:end]
        return payloads
