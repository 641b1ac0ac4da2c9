"""Measure a sandbox in its control group."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod

from ...sandbox_image.protocol import NOT_MEASURED, Enforcement, Outcome, Usage
from .cgroups import Cgroup
from .duty_cycle import DUTY_CYCLE, NOT_NEEDED, DutyCycle
from .process_tree import ProcessTree

# The group does not count those that may run.
_ANY_THREADS = 1 << 20


class Meter(ABC):
    """The resource use of one sandbox. Times are monotonic seconds.

    Attributes:
        enforcement: what holds its limits.
    """

    enforcement: Enforcement

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
        """Return when ``check`` is due, in a cell and between cells."""
        return None

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """Measure if due; return ``exceeded``."""
        return None

    @abstractmethod
    def interrupted(self) -> None:
        """Let the cell run for a moment: it must end itself now."""


class CgroupMeter(Meter):
    """Reads a control group."""

    # Without a `cpu` controller in the group, a duty cycle holds the share of the processors.
    def __init__(
        self, cgroup: Cgroup, tree: ProcessTree | None = None, duty: DutyCycle | None = None
    ) -> None:
        cpus = "cgroup" if cgroup.limits_cpus else None
        if tree is not None:
            cpus = NOT_NEEDED if duty is None else DUTY_CYCLE
        self.enforcement = Enforcement("cgroup", "cgroup", cpus)
        self._cgroup = cgroup
        self._tree = tree
        self._duty = duty
        self._due = 0.0
        self._charged: float | None = None
        self._ending: tuple[Outcome, str] | None = None
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
        return self._ending

    def next_check(self, now: float) -> float | None:
        """See ``Meter.next_check``."""
        return None if self._duty is None else max(now, self._due)

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """See ``Meter.check``."""
        if self._duty is None or self._tree is None or now < self._due:
            return None
        total = self._cgroup.cpu_seconds()
        used = total - (total if self._charged is None else self._charged)
        self._charged = total
        reason = self._duty.update(used, now)
        if reason is not None:
            self._ending = Outcome.RESOURCE_LIMIT, reason
        if not self._duty.is_stopping:
            self._tree.kill_stopped_repl()
        self._due = self._duty.next_check(now, _ANY_THREADS)
        return self._ending

    def interrupted(self) -> None:
        """See ``Meter.interrupted``."""
        if self._duty is not None:
            self._duty.let_run()

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        with contextlib.suppress(OSError):
            return self._cgroup.refused_forks() > self._refused
        return False


class NoMeter(Meter):
    """Measures nothing."""

    enforcement = Enforcement(None, None, None)

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""

    def usage(self) -> Usage:
        """Return ``NOT_MEASURED``."""
        return NOT_MEASURED

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        return None

    def interrupted(self) -> None:
        """See ``Meter.interrupted``."""

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return False
