"""Counts what the runs inside a run paid."""

from __future__ import annotations

from threading import Lock

from ...handlers import Usage


class InnerCalls:
    """What the runs inside a run paid to one role; they may be in other threads. None dollars are unknown."""

    def __init__(self, outer: InnerCalls | None = None) -> None:
        self.usage = Usage()
        self.cost_usd: float | None = 0.0
        self._outer = outer
        self._lock = Lock()

    def add(self, usage: Usage, cost_usd: float | None) -> None:
        """Count one call, in the outer runs too."""
        with self._lock:
            self.usage += usage
            if self.cost_usd is not None:
                self.cost_usd = None if cost_usd is None else self.cost_usd + cost_usd
        if self._outer is not None:
            self._outer.add(usage, cost_usd)
