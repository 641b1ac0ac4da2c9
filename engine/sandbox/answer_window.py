"""Bound the engine's memory for the answers of one guest, without I/O."""

from __future__ import annotations

from typing import Literal

Kind = Literal["worker", "tool"]

# Calls begin while the answers that are expected, and those that the guest has not read, fit.
WINDOW_BYTES = 16 << 20
# Answers of a call are sent in messages of about this size, while so many bytes are unread.
PART_BYTES = 4 << 20
MOST_UNREAD = 12 << 20
# One answer may be as large, and no larger.
ANSWER_BYTES = 16 << 20
# Until the first answer, so that the first call of a batch fits. Then the window follows what comes: a reply
# opens it up to eight times, and closes it at once.
# A tool's result may have a MiB: 64 of them begin.
_FIRST_BYTES: dict[Kind, int] = {"worker": 64 << 10, "tool": 256 << 10}
_OPENS = 8
_LEAST_BYTES = 2 << 10


class AnswerWindow:
    """Counts the answers of one guest from the call until the guest's socket has them."""

    def __init__(self) -> None:
        self._bytes_each = dict(_FIRST_BYTES)
        self._expected = 0
        # It may fall below zero for a while: a reply may be read before it is counted.
        self._unread = 0

    @property
    def may_send(self) -> bool:
        """Whether the guest reads its replies."""
        return self._unread <= MOST_UNREAD

    def expect(self, kind: Kind, count: int) -> int | None:
        """Reserve memory for answers and return its size; None if the call must wait."""
        size = count * self._bytes_each[kind]
        used = self._expected + max(0, self._unread)
        # The largest call must begin some time.
        if used and used + size > WINDOW_BYTES:
            return None
        self._expected += size
        return size

    def release(self, reserved: int) -> None:
        """Give back what ``expect`` returned."""
        self._expected -= reserved

    def learn(self, kind: Kind, count: int, size: int) -> None:
        """Take the size of the answers to a call."""
        self._bytes_each[kind] = max(size // count, self._bytes_each[kind] // _OPENS, _LEAST_BYTES)

    def sent(self, size: int) -> None:
        """Count a reply."""
        self._unread += size

    def taken(self, size: int) -> None:
        """Count what the guest has read."""
        self._unread -= size
