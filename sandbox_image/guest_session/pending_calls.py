"""Count a guest's pending calls, and limit their rate."""

from __future__ import annotations

from ..protocol import SessionLimits, Violation

# Bounds what one guest makes the engine hold.
_PENDING_BYTES = 64 << 20
_LAST_NUMBER = (1 << 62) - 1


class PendingCalls:
    """Calls of workers and tools without a reply."""

    # The rate is a token bucket that holds one second of calls. No call is refused: a guest that calls too
    # often is not read for a while.

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
        """Whether a limit on pending calls is reached."""
        return self._prompts >= self._most or self._bytes >= _PENDING_BYTES

    def resume_at(self, now: float) -> float | None:
        """Return when the rate allows another call; None for now."""
        rate = self._rate
        self._allowance = min(rate, self._allowance + (now - self._allowance_at) * rate)
        self._allowance_at = now
        return None if self._allowance >= 0 else now - self._allowance / rate

    def take_number(self, call: int) -> None:
        """Use a number, and one call of the rate.

        Raises:
            Violation: the number does not rise.
        """
        if not self._last_number < call <= _LAST_NUMBER:
            raise Violation("a call's number was used before")
        self._last_number = call
        self._allowance -= 1

    def add(self, call: int, prompts: int, size: int) -> None:
        """Add a call with its number of prompts and bytes."""
        self._pending[call] = prompts, size
        self._prompts += prompts
        self._bytes += size

    def remove(self, call: int) -> bool:
        """Remove a call; return False if it was not pending."""
        counted = self._pending.pop(call, None)
        if counted is None:
            return False
        self._prompts -= counted[0]
        self._bytes -= counted[1]
        return True

    def clear(self) -> None:
        """Remove all calls."""
        self._pending.clear()
        self._prompts = self._bytes = 0
