"""What a sandbox uses: counted by its control group, or, where there is none, by looking at its processes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

from ..protocol import Limits, Outcome, Usage
from .cgroups import Cgroup
from .walls import Walls

_LOOK_SECONDS = 0.1


class Meter(ABC):
    """Use of one sandbox, cell by cell. Times are seconds of the caller's monotonic clock."""

    @abstractmethod
    def begin(self) -> None:
        """A cell begins: what is counted from now on is its own."""

    @abstractmethod
    def usage(self) -> Usage:
        """Of the running cell, up to now."""

    @abstractmethod
    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has killed a process of the sandbox for want of memory."""

    @abstractmethod
    def was_refused_a_process(self) -> bool:
        """Whether the running cell came up against the limit on processes."""

    def next_look(self, now: float) -> float | None:
        """When ``look`` is due; None where the kernel does the looking."""
        return None

    def look(self, now: float) -> tuple[Outcome, str] | None:
        """A limit that is exceeded, and the words for it; None where all is well."""
        return None


class CgroupMeter(Meter):
    """The kernel's books."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self.begin()

    def begin(self) -> None:
        """See ``Meter.begin``."""
        self._cpu = self._cgroup.cpu_seconds()
        self._refused = self._cgroup.refused_forks()

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        return Usage(self._cgroup.cpu_seconds() - self._cpu, self._cgroup.peak_memory(), "cgroup")

    def was_killed_for_memory(self) -> bool:
        """See ``Meter.was_killed_for_memory``."""
        return self._cgroup.oom_kills() > 0

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return self._cgroup.refused_forks() > self._refused


class Watchdog(Meter):
    """A look at the process tree every tenth of a second. A burst between two looks goes unseen."""

    def __init__(self, init_pid: int, limits: Limits) -> None:
        self._init = psutil.Process(init_pid)
        self._limits = limits
        self._due = 0.0
        self._peak = 0
        self._cpu_before = 0.0
        self._cpu = 0.0
        self._processes = 0

    def begin(self) -> None:
        """See ``Meter.begin``."""
        self._count()
        self._cpu_before = self._cpu

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        self._count()
        return Usage(max(0.0, self._cpu - self._cpu_before), self._peak, "watchdog")

    def was_killed_for_memory(self) -> bool:
        """See ``Meter.was_killed_for_memory``: nobody would tell."""
        return False

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return self._processes >= self._limits.pids

    def next_look(self, now: float) -> float | None:
        """See ``Meter.next_look``."""
        return max(now, self._due)

    def look(self, now: float) -> tuple[Outcome, str] | None:
        """See ``Meter.look``."""
        if now < self._due:
            return None
        self._due = now + _LOOK_SECONDS
        memory = self._count()
        if memory > self._limits.memory_bytes:
            return Outcome.OOM, f"its processes used {memory} bytes; {self._limits.memory_bytes} are allowed"
        return None

    def _count(self) -> int:
        """Sum over the tree: memory of its own in bytes (returned), processor time, threads."""
        processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = [self._init, *self._init.children(recursive=True)]
        memory, cpu, threads = 0, 0.0, 0
        for process in processes:
            with contextlib.suppress(psutil.Error), process.oneshot():
                times, held = process.cpu_times(), process.memory_info()
                memory += max(0, held.rss - held.shared)
                cpu += times.user + times.system + times.children_user + times.children_system
                threads += process.num_threads()
        if memory > min(self._peak or memory, self._limits.memory_bytes):
            # So far, pages that a fork shares with its parent were counted in each. This costs more and is exact.
            memory = sum(_own_memory(process.pid) for process in processes)
        self._peak, self._cpu, self._processes = max(self._peak, memory), max(self._cpu, cpu), threads
        return memory


def _own_memory(pid: int) -> int:
    """Bytes of a process that lie in no file, shared ones in proportion (proc(5), smaps_rollup); 0 once it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes = {name: value for name, _, value in (line.partition(":") for line in lines[1:])}
        return sum(int(sizes[name].split()[0]) << 10 for name in ("Pss_Anon", "Pss_Shmem"))
    return 0


def meter_of(built: Walls, limits: Limits) -> Meter:
    """The meter that these walls allow."""
    return Watchdog(built.pid, limits) if built.cgroup is None else CgroupMeter(built.cgroup)
