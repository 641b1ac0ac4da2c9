"""Limit how often something happens."""

from __future__ import annotations


class Rate:
    """A token bucket that holds one second. Times are in seconds of one clock."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = 0.0

    def take(self) -> None:
        """Use one. The bucket may fall below zero by it."""
        self._left -= 1

    def give(self, count: int) -> None:
        """Add what was asked for."""
        # No more than that and a second: what is given and not used must not add up.
        self._left = min(self._left, self._per_second) + count

    def resume_at(self, now: float) -> float | None:
        """Return when another is allowed; None for now."""
        left = self._left + (now - self._at) * self._per_second
        # Only the refill has a top: what was given may be used at any time.
        self._left = min(left, max(self._per_second, self._left))
        self._at = now
        return None if self._left >= 0 else now - self._left / self._per_second
