"""Measure a sandbox in its control group."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod

from ...sandbox_image.protocol import NOT_MEASURED, Outcome, Usage
from .cgroups import Cgroup


class Meter(ABC):
    """The resource use of one sandbox. Times are monotonic seconds."""

    @abstractmethod
    def begin_cell(self) -> None:
        """Start to count for a cell."""

    @abstractmethod
    def usage(self) -> Usage:
        """Return the cell's use so far."""

    @abstractmethod
    def exceeded(self) -> tuple[Outcome, str] | None:
        """Return outcome and reason of an exceeded limit."""

    @abstractmethod
    def was_refused_a_process(self) -> bool:
        """Return whether a fork was refused."""

    def next_check(self, now: float) -> float | None:
        """Return when ``check`` is due."""
        return None

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """Measure if due; return ``exceeded``."""
        return None


class CgroupMeter(Meter):
    """Reads a control group."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._usage = NOT_MEASURED
        self._cpu, self._refused, self._is_out_of_memory = 0.0, 0, False
        self.begin_cell()

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""
        self._usage = NOT_MEASURED
        # Both counters only rise: a cell's part is the difference.
        with contextlib.suppress(OSError):
            self._cpu = self._cgroup.cpu_seconds()
            self._refused = self._cgroup.refused_forks()

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        # The group of a container disappears with it. Then its last figures stay.
        with contextlib.suppress(OSError):
            cpu = self._cgroup.cpu_seconds() - self._cpu
            self._usage = Usage(cpu, self._cgroup.peak_memory(), "cgroup")
        return self._usage

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        # Any killed process counts: the state of the cell may be incomplete without it.
        with contextlib.suppress(OSError):
            self._is_out_of_memory = self._cgroup.oom_kills() > 0
        if self._is_out_of_memory:
            return Outcome.OOM, "the kernel killed a process: out of memory"
        return None

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        with contextlib.suppress(OSError):
            return self._cgroup.refused_forks() > self._refused
        return False


class NoMeter(Meter):
    """Measures nothing."""

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""

    def usage(self) -> Usage:
        """Return ``NOT_MEASURED``."""
        return NOT_MEASURED

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        return None

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return False
