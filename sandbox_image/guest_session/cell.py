"""The running cell: its clock and its counters."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import Outcome


@dataclass(slots=True)
class Cell:
    """A cell that runs. Its clock stands still while calls are pending.

    Attributes:
        timeout: seconds for the cell without its waits for replies.
        wall_seconds: seconds for the cell with its waits.
        interrupted: why it was interrupted; None until then.
        kill_at: when it is killed, if it does not stop after its interrupt.
    """

    number: int
    timeout: float
    wall_seconds: float
    started: float
    waited: float = 0.0
    waiting_since: float | None = None
    answered: bool = False
    output: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    displays: int = 0
    display_bytes: int = 0
    interrupted: Outcome | None = None
    kill_at: float | None = None

    def worker_wait(self, now: float) -> float:
        """Return the seconds that the cell has waited for replies."""
        return self.waited + (now - self.waiting_since if self.waiting_since is not None else 0.0)

    def deadline(self) -> float:
        """Return when to act next: at the timeout, at the limit with waits, or at the end of the grace."""
        if self.kill_at is not None:
            return self.kill_at
        latest = self.started + self.wall_seconds
        if self.waiting_since is not None:
            return latest
        return min(latest, self.started + self.timeout + self.waited)

    def pause_clock(self, now: float) -> None:
        """Stop the clock while replies are awaited."""
        if self.waiting_since is None:
            self.waiting_since = now

    def resume_clock(self, now: float) -> None:
        """Let the clock run again."""
        if self.waiting_since is not None:
            self.waited += now - self.waiting_since
            self.waiting_since = None
