"""What is measured: software that runs Python code, behind one interface."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

# Figures of one round by variant, in the metric's unit. A single variant is "".
Figures = Mapping[str, float]
# Measures one round of one subject.
Trial = Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a round does."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """Return the number for this scale."""
        return quick if self.quick else full


class Subject(ABC):
    """Software that runs Python code."""

    name: str

    def missing(self) -> str | None:
        """Return what must be installed first; None if nothing."""
        return None

    @abstractmethod
    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """Return the trial of a metric; None if it does not apply."""


class Session(ABC):
    """A persistent namespace that executes code."""

    @abstractmethod
    def run(self, code: str) -> str:
        """Run code, and return what it printed. Raises ``RuntimeError`` if the code failed."""

    @abstractmethod
    def close(self) -> None:
        """End the session and its processes."""

    def times(self, code: str, count: int) -> list[float]:
        """Return the seconds of each of ``count`` runs."""
        found: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            self.run(code)
            found.append(time.perf_counter() - start)
        return found

    def processes(self) -> list[int]:
        """Return the pids of this session's own processes."""
        return []


def pss(processes: list[int]) -> int:
    """Return the proportional set size of processes in bytes."""
    # Pss of proc(5), smaps_rollup: a page that n processes share counts as 1/n of a page.
    total = 0
    for pid in processes:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


def processor_ns(pid: int) -> int:
    """Return the processor time of a process in nanoseconds."""
    # The first number of proc(5), schedstat, is a thread's time on a processor.
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total
