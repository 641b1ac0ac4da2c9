"""What a sandbox uses, as its control group counts it. Where there is none, ``watchdog`` looks at its processes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod

from ...sandbox_image.protocol import NOT_MEASURED, Outcome, Usage
from .cgroups import Cgroup


class Meter(ABC):
    """Use of one sandbox, cell by cell. Times are seconds of the caller's monotonic clock."""

    @abstractmethod
    def begin_cell(self) -> None:
        """A cell begins: what is counted from now on is its own."""

    @abstractmethod
    def usage(self) -> Usage:
        """Of the running cell, up to now."""

    @abstractmethod
    def exceeded(self) -> tuple[Outcome, str] | None:
        """A limit that was passed when last looked, and the words for it; None where all is well."""

    @abstractmethod
    def was_refused_a_process(self) -> bool:
        """Whether the running cell came up against the limit on processes."""

    def next_check(self, now: float) -> float | None:
        """When ``check`` is due; None where the kernel does the looking."""
        return None

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """Look, where that is due, and what was ``exceeded``."""
        return None


class CgroupMeter(Meter):
    """The kernel's books. A container's are closed with it: what they said last holds then."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._cpu, self._refused, self._is_out_of_memory = 0.0, 0, False
        self.begin_cell()

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""
        self._usage = NOT_MEASURED
        with contextlib.suppress(OSError):
            self._cpu = self._cgroup.cpu_seconds()
            self._refused = self._cgroup.refused_forks()

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        with contextlib.suppress(OSError):
            cpu = self._cgroup.cpu_seconds() - self._cpu
            self._usage = Usage(cpu, self._cgroup.peak_memory(), "cgroup")
        return self._usage

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``. Where any process was killed, the tree is no longer whole."""
        with contextlib.suppress(OSError):
            self._is_out_of_memory = self._cgroup.oom_kills() > 0
        if self._is_out_of_memory:
            return Outcome.OOM, "the kernel killed a process for want of memory"
        return None

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        with contextlib.suppress(OSError):
            return self._cgroup.refused_forks() > self._refused
        return False


class NoMeter(Meter):
    """Of a container on another machine, or one that its runtime puts into no control group, nothing is seen."""

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        return NOT_MEASURED

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        return None

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return False
