"""Hold a share of the processors by arithmetic: how long may it run, how long must it wait."""

from __future__ import annotations

from collections.abc import Iterable

from .process_tree import Process

# As the period of the kernel's quota (cgroups(7)).
_PERIOD_SECONDS = 0.1
# A share of less would stop after each short cell.
_LEAST_SAVED_SECONDS = 0.02
_LEAST_CHECK_SECONDS = 0.01


class ProcessorShare:
    """Processor time that may be used: it grows with the clock, and is saved for at most a tenth of a second.

    Args:
        cpus: processor seconds for each second.
        processors: how many processors may be used at once.
    """

    def __init__(self, cpus: float, processors: int, now: float) -> None:
        self._cpus = cpus
        self._processors = processors
        self._most = max(cpus * _PERIOD_SECONDS, _LEAST_SAVED_SECONDS)
        self._left = self._most
        self._at = now

    def use(self, seconds: float, now: float) -> None:
        """Count processor time that was used until now."""
        self._left = min(self._most, self._left + (now - self._at) * self._cpus) - seconds
        self._at = now

    def grant(self, seconds: float) -> None:
        """Let it run for some time, whatever it owes."""
        self._left = max(self._left, seconds)

    @property
    def resume_at(self) -> float | None:
        """When it may run again; None if it may run."""
        return self._at - self._left / self._cpus if self._left < 0 else None

    def check_at(self, threads: int) -> float:
        """Return when so many threads may have used what is left."""
        surplus = min(threads, self._processors) - self._cpus
        if surplus <= 0:
            return self._at + _PERIOD_SECONDS
        return self._at + min(max(self._left / surplus, _LEAST_CHECK_SECONDS), _PERIOD_SECONDS)


class ProcessorTime:
    """Adds up what processes use, also after they have ended."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[float, float]] = {}
        self.total = 0.0

    def add(self, processes: Iterable[Process]) -> float:
        """Return the seconds that were used since the last call."""
        used, reaped, before = 0.0, 0.0, self._seen
        self._seen = {each.key: (each.seconds, each.reaped_seconds) for each in processes}
        for key, (seconds, of_children) in self._seen.items():
            known, known_of_children = before.pop(key, (0.0, 0.0))
            used += max(0.0, seconds - known)
            reaped += max(0.0, of_children - known_of_children)
        # A parent that waited has all time of its child. A part of that was counted while the child lived.
        reaped -= sum(sum(ended) for ended in before.values())
        used += max(0.0, reaped)
        self.total += used
        return used
