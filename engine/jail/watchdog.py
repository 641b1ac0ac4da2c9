"""Count and hold what a sandbox uses without control groups."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...sandbox_image.protocol import Enforcement, Outcome, ResourceLimits, Usage
from .duty_cycle import DUTY_CYCLE, NOT_NEEDED, DutyCycle
from .meter import Meter
from .process_tree import Process, ProcessTree
from .processor_share import ProcessorTime
from .socket_memory import SocketMemory

WATCHDOG = "watchdog every 0.01 to 0.1 s, 0.5 s when idle"
_CHECK_SECONDS = 0.1
_LEAST_CHECK_SECONDS = 0.01
# Between cells, if only init and the repl exist, with a thread each, and used no processor time. One process
# is bounded by its own limit on memory meanwhile.
_IDLE_CHECK_SECONDS = 0.5
_IDLE_PROCESSES = 2
_IDLE_CPU_SECONDS = 0.001
# How fast a processor can fill memory: sockets and page tables take some 2 GiB a second.
_FILL_BYTES_PER_SECOND = 2 << 30
# A check may take this part of the time between two of them.
_MOST_COST = 1 / 10
# A smaller growth is not measured exactly: that takes ten times as long.
_PEAK_STEP_BYTES = 1 << 20
# The kernel's stack of a thread and its other structures.
_THREAD_BYTES = 32 << 10
# Of an open file, and of half a pipe when its user has used up the pages for pipes (pipe(7)).
_DESCRIPTOR_BYTES = 4 << 10
# The kernel's structures of a mapping, and the most of a process (vm.max_map_count).
_MAPPING_BYTES = 256
_MOST_MAPPINGS = 65_530


class Watchdog(Meter):
    """Checks the processes of a sandbox, often enough for its limit; misses shorter bursts.

    Args:
        sockets: None if the kernel cannot list them.
        duty: None if the sandbox may use all processors.
        processors: how many can fill memory at once.
        clock: returns monotonic seconds, to measure what a check costs.
    """

    def __init__(
        self,
        tree: ProcessTree,
        limits: ResourceLimits,
        *,
        sockets: SocketMemory | None,
        duty: DutyCycle | None,
        processors: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enforcement = Enforcement(WATCHDOG, "rlimit", NOT_NEEDED if duty is None else DUTY_CYCLE)
        self._tree = tree
        self._limits = limits
        self._sockets = sockets
        self._duty = duty
        self._processors = processors
        self._clock = clock
        self._cpu = ProcessorTime()
        self._has_started = False
        self._is_in_cell = False
        self._due = 0.0
        self._memory = 0
        self._peak = 0
        self._summed_peak = 0
        self._cpu_before = 0.0
        self._most_threads = 0
        self._ending: tuple[Outcome, str] | None = None

    def begin_cell(self) -> None:
        """See ``Meter.begin_cell``."""
        self._most_threads = 0
        self._is_in_cell = True
        now = self._clock()
        self._count_cpu(self._tree.alive(), now)
        self._due = min(self._due, now + _LEAST_CHECK_SECONDS)
        self._cpu_before = self._cpu.total

    def usage(self) -> Usage:
        """See ``Meter.usage``."""
        self._is_in_cell = False
        self._count(self._clock())
        return Usage(self._cpu.total - self._cpu_before, self._peak, "watchdog")

    def exceeded(self) -> tuple[Outcome, str] | None:
        """See ``Meter.exceeded``."""
        most = self._limits.memory_bytes
        if self._memory > most:
            return Outcome.OOM, f"its processes used {self._memory} bytes; {most} are allowed"
        return self._ending

    def was_refused_a_process(self) -> bool:
        """See ``Meter.was_refused_a_process``."""
        return self._most_threads >= self._limits.pids

    def next_check(self, now: float) -> float | None:
        """See ``Meter.next_check``."""
        return max(now, self._due)

    def check(self, now: float) -> tuple[Outcome, str] | None:
        """See ``Meter.check``."""
        if now < self._due:
            return None
        self._count(now)
        if self._duty is None or not self._duty.is_stopping:
            self._tree.kill_stopped_repl()
        return self.exceeded()

    def interrupted(self) -> None:
        """See ``Meter.interrupted``."""
        if self._duty is not None:
            self._duty.let_run()

    def _count(self, now: float) -> None:
        started = self._clock()
        processes = self._tree.alive()
        threads = sum(each.threads for each in processes)
        self._most_threads = max(self._most_threads, threads)
        self._memory = self._count_memory(processes, threads)
        used = self._count_cpu(processes, now)
        cost = self._clock() - started
        self._due = now + max(self._interval(now, processes, threads, used), cost / _MOST_COST)

    def _count_memory(self, processes: list[Process], threads: int) -> int:
        used = [self._tree.memory(each) for each in processes]
        resident = sum(each.resident for each in used)
        other = sum(each.page_tables + each.descriptors * _DESCRIPTOR_BYTES for each in used)
        other += threads * _THREAD_BYTES
        if self._sockets is not None:
            other += self._sockets.count()
        most = sum(min(each.most_mappings, _MOST_MAPPINGS) for each in used) * _MAPPING_BYTES
        if resident + other + most > self._limits.memory_bytes:
            # Address space is far more than mappings mostly.
            other += self._mapping_bytes(processes, self._limits.memory_bytes - resident - other)
        total = resident + other
        if total > min(self._summed_peak + _PEAK_STEP_BYTES, self._limits.memory_bytes):
            # Pages that processes share were counted once for each.
            self._summed_peak = max(self._summed_peak, total)
            total = sum(map(self._tree.proportional_memory, processes)) + other
            self._peak = max(self._peak, total)
        return total

    def _mapping_bytes(self, processes: list[Process], left: int) -> int:
        total = 0
        for each in processes:
            total += self._tree.mappings(each) * _MAPPING_BYTES
            # Pages that processes share may be all that is too much.
            if 0 <= left < total:
                break
        return total

    def _count_cpu(self, processes: list[Process], now: float) -> float:
        used = self._cpu.add(processes)
        if not self._has_started:
            # The setup is not the guest's.
            self._has_started = bool(processes)
            return 0.0
        if self._duty is not None:
            reason = self._duty.update(used, now)
            if reason is not None:
                self._ending = Outcome.RESOURCE_LIMIT, reason
        return used

    def _interval(self, now: float, processes: list[Process], threads: int, used: float) -> float:
        is_alone = len(processes) == threads == _IDLE_PROCESSES
        if is_alone and not self._is_in_cell and used < _IDLE_CPU_SECONDS and not self._is_stopping():
            return _IDLE_CHECK_SECONDS
        # Until then the memory that is left cannot be filled.
        left = self._limits.memory_bytes - self._memory
        seconds = left / (_FILL_BYTES_PER_SECOND * self._processors)
        seconds = min(max(seconds, _LEAST_CHECK_SECONDS), _CHECK_SECONDS)
        if self._duty is None:
            return seconds
        return min(seconds, max(0.0, self._duty.next_check(now, threads - 1) - now))

    def _is_stopping(self) -> bool:
        return self._duty is not None and self._duty.is_stopping
