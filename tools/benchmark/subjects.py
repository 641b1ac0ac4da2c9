"""What is measured side by side: things that run Python code, behind one interface."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

Figures = Mapping[str, float]
"""What one round found: a figure, in its metric's unit, for each variant; ``""`` where there is only one."""

Trial = Callable[[], Figures]
"""One round of one subject."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done in a round: all, or as much as fits into a minute."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """The number for this scale."""
        return quick if self.quick else full


class Subject(ABC):
    """Something that runs Python code."""

    name: str

    def missing(self) -> str | None:
        """Why it cannot be measured here, and what to install; None where it can."""
        return None

    @abstractmethod
    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """What measures the metric; None where this has no such thing."""


class Session(ABC):
    """A persistent namespace that runs one piece of code after another."""

    @abstractmethod
    def run(self, code: str) -> str:
        """Run it to its end; what it printed.

        Raises:
            RuntimeError: the code failed, which no code here should.
        """

    @abstractmethod
    def close(self) -> None:
        """End it, and wait until it is gone."""

    def times(self, code: str, count: int) -> list[float]:
        """Seconds from the order to the result, for each of so many runs."""
        found: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            self.run(code)
            found.append(time.perf_counter() - start)
        return found

    def processes(self) -> list[int]:
        """The processes that are there for this session alone."""
        return []


def pss(processes: list[int]) -> int:
    """Bytes of memory that processes hold, what is shared counted in parts (``Pss`` of proc(5), smaps_rollup)."""
    total = 0
    for pid in processes:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


def processor_ns(pid: int) -> int:
    """Nanoseconds for which all threads of a process ran (the first number of proc(5), schedstat)."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total
