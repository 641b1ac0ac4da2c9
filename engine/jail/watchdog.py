"""Measure what a sandbox uses without control groups, from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path

# Only zygotes without control groups import this module: psutil takes memory in every sandbox.
import psutil

from ...sandbox_image.protocol import Outcome, ResourceLimits, Usage
from .meter import Meter

_CHECK_SECONDS = 0.1
# Exists if the kernel lists the children of a thread (CONFIG_PROC_CHILDREN), as most do.
_CHILDREN = Path("/proc/thread-self/children")


class Watchdog(Meter):
    """Checks the process tree every 0.1 s; misses shorter bursts."""

    def __init__(self, init_pid: int, limits: ResourceLimits) -> None:
        self._init = psutil.Process(init_pid)
        self._limits = limits
        self._due = 0.0
        self._memory = 0
        self._peak = 0
        self._cpu_before = 0.0
        self._cpu = 0.0
        self._processes = 0

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""
        self._processes = 0
        self._count()
        self._cpu_before = self._cpu

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        self._count()
        return Usage(max(0.0, self._cpu - self._cpu_before), self._peak, "watchdog")

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        most = self._limits.memory_bytes
        if self._memory > most:
            return Outcome.OOM, f"its processes used {self._memory} bytes; {most} are allowed"
        return None

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return self._processes >= self._limits.pids

    def next_check(self, now: float) -> float | None:
        """See ``Meter.next_check``."""
        return max(now, self._due)

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """See ``Meter.check``."""
        if now < self._due:
            return None
        self._due = now + _CHECK_SECONDS
        self._count()
        return self.exceeded()

    def _count(self) -> None:
        processes = _tree(self._init)
        memory, cpu, threads = 0, 0.0, 0
        for process in processes:
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                memory += _sum_kib(f"/proc/{process.pid}/status", "RssAnon", "RssShmem")
                cpu += times.user + times.system + times.children_user + times.children_system
                threads += process.num_threads()
        if memory > min(self._peak or memory, self._limits.memory_bytes):
            # Rss counts pages that processes share once for each; Pss divides them. It is exact, but slower
            # (proc(5)).
            memory = sum(
                _sum_kib(f"/proc/{process.pid}/smaps_rollup", "Pss_Anon", "Pss_Shmem")
                for process in processes
            )
        self._memory, self._peak, self._cpu = memory, max(self._peak, memory), max(self._cpu, cpu)
        self._processes = max(self._processes, threads)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    if not _CHILDREN.exists():
        with contextlib.suppress(psutil.NoSuchProcess):
            return [root, *root.children(recursive=True)]
        return []
    # psutil would read every process of the machine.
    pids = [root.pid]
    for pid in pids:  # the list grows meanwhile
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids.extend(map(int, (task / "children").read_text().split()))
    processes = [root]
    for pid in pids[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    return processes


def _sum_kib(path: str, *names: str) -> int:
    # Lines such as `RssAnon:  12 kB` (proc(5)). The process may have ended.
    with contextlib.suppress(OSError):
        lines = (line.split() for line in Path(path).read_text().splitlines())
        wanted = {f"{name}:" for name in names}
        return sum(int(words[1]) << 10 for words in lines if words and words[0] in wanted)
    return 0
