"""The clock and counters of the running cell."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import Outcome


@dataclass(slots=True)
class Cell:
    """A running cell. Times are in seconds."""

    number: int
    # Without the waits for replies: a slow model must not cost the cell its time.
    timeout: float
    # With those waits.
    wall_seconds: float
    started: float
    waited: float = 0.0
    waiting_since: float | None = None
    answered: bool = False
    output: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    displays: int = 0
    display_bytes: int = 0
    interrupted: Outcome | None = None
    # The end of the grace after an interrupt.
    kill_at: float | None = None

    def worker_wait(self, now: float) -> float:
        """Return the seconds spent waiting for replies."""
        return self.waited + (now - self.waiting_since if self.waiting_since is not None else 0.0)

    def deadline(self) -> float:
        """Return when to interrupt or kill the cell."""
        if self.kill_at is not None:
            return self.kill_at
        latest = self.started + self.wall_seconds
        if self.waiting_since is not None:
            return latest
        return min(latest, self.started + self.timeout + self.waited)

    def pause_clock(self, now: float) -> None:
        """Stop the clock during a call."""
        if self.waiting_since is None:
            self.waiting_since = now

    def resume_clock(self, now: float) -> None:
        """Start the clock again."""
        if self.waiting_since is not None:
            self.waited += now - self.waiting_since
            self.waiting_since = None
