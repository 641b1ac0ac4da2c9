"""The calls of a guest that have no reply yet, and the rate of calls."""

from __future__ import annotations

from ..protocol import SessionLimits, Violation

_PENDING_BYTES = 64 << 20
_LAST_NUMBER = (1 << 62) - 1


class PendingCalls:
    """Calls of workers and tools. They share their numbers, their rate and their limits.

    The rate is a bucket that holds the calls of one second and is refilled all the time. No call is refused: a guest
    that calls too often is not read for a while.
    """

    def __init__(self, limits: SessionLimits) -> None:
        self._most = limits.pending_calls
        self._rate = limits.calls_per_second
        self._last_number = 0
        self._pending: dict[int, tuple[int, int]] = {}
        self._prompts = 0
        self._bytes = 0
        self._allowance = limits.calls_per_second
        self._allowance_at = 0.0

    def __len__(self) -> int:
        """Return the number of calls without a reply."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether enough calls wait for a reply."""
        return self._prompts >= self._most or self._bytes >= _PENDING_BYTES

    def resume_at(self, now: float) -> float | None:
        """Return when the rate allows another call; None where it allows one now."""
        rate = self._rate
        self._allowance = min(rate, self._allowance + (now - self._allowance_at) * rate)
        self._allowance_at = now
        return None if self._allowance >= 0 else now - self._allowance / rate

    def take_number(self, call: int) -> None:
        """Use up a number, and a share of the rate.

        Raises:
            Violation: the number is not above the last one.
        """
        if not self._last_number < call <= _LAST_NUMBER:
            raise Violation("a call's number was used before")
        self._last_number = call
        self._allowance -= 1

    def add(self, call: int, prompts: int, size: int) -> None:
        """Wait for the reply of a call with so many prompts, and so many bytes."""
        self._pending[call] = prompts, size
        self._prompts += prompts
        self._bytes += size

    def answer(self, call: int) -> bool:
        """Stop waiting for this reply. Return False where none is awaited."""
        counted = self._pending.pop(call, None)
        if counted is None:
            return False
        self._prompts -= counted[0]
        self._bytes -= counted[1]
        return True

    def clear(self) -> None:
        """Wait for no reply any more."""
        self._pending.clear()
        self._prompts = self._bytes = 0
