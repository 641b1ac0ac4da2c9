"""Read the processes of a sandbox in its own /proc (proc(5)), and signal them."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NamedTuple

INIT, REPL = 1, 2
"""Process ids in the sandbox's namespace."""

_TICKS = os.sysconf("SC_CLK_TCK")
_READ_BYTES = 8 << 10
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOPPED = "Tt"
_ENDED = "ZX"


class Process(NamedTuple):
    """A process.

    Attributes:
        started: with ``pid`` it names one process for ever.
        state: the letter in proc_pid_stat(5).
        seconds: processor time of its threads.
        reaped_seconds: processor time of the children that it waited for.
    """

    pid: int
    started: int
    state: str
    threads: int
    seconds: float
    reaped_seconds: float

    @property
    def key(self) -> tuple[int, int]:
        """Its identity. The kernel uses a pid again."""
        return self.pid, self.started

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it."""
        return self.state in _STOPPED

    @property
    def has_ended(self) -> bool:
        """Whether it only waits for its parent."""
        # The first thread may have ended before the others.
        return self.state in _ENDED and self.threads <= 1


class Memory(NamedTuple):
    """Bytes: resident pages without those of files, shared ones in full; page tables.

    Numbers: open descriptors; mappings at most, since each has a page of address space.
    """

    resident: int
    page_tables: int
    descriptors: int = 0
    most_mappings: int = 0


class ProcessTree:
    """All processes of one sandbox.

    The sandbox's /proc lists them whatever their parents are, and a folder of it can be signalled as a pidfd.
    """

    def __init__(self, init_pid: int) -> None:
        self._init_pid = init_pid
        self._proc = -1

    def processes(self) -> list[Process]:
        """Return all processes; none before the sandbox has its /proc."""
        if not self._is_open():
            return []
        found: list[Process] = []
        for name in os.listdir(self._proc):
            if name.isdecimal():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found.append(self._process(name))
        return found

    def alive(self) -> list[Process]:
        """Return the processes that have not ended."""
        return [each for each in self.processes() if not each.has_ended]

    def process(self, pid: int) -> Process | None:
        """Return one process, or None."""
        if self._is_open():
            with contextlib.suppress(OSError, ValueError, IndexError):
                return self._process(str(pid))
        return None

    def memory(self, process: Process) -> Memory:
        """Return what a process uses; nothing if it has ended."""
        with contextlib.suppress(OSError):
            text = self._read(f"{self._alive_thread(process)}/status")
            resident = _kib(text, b"\nRssAnon:") + _kib(text, b"\nRssShmem:")
            # Linux 6.2 and newer; else 0.
            descriptors = os.stat(f"{process.pid}/fd", dir_fd=self._proc).st_size
            mappings = _kib(text, b"\nVmSize:") // _PAGE_BYTES
            return Memory(resident, _kib(text, b"\nVmPTE:"), descriptors, mappings)
        return Memory(0, 0)

    def proportional_memory(self, process: Process) -> int:
        """Return its resident bytes without files, shared pages divided. It is exact, but slower."""
        with contextlib.suppress(OSError):
            text = self._read(f"{self._alive_thread(process)}/smaps_rollup")
            return _kib(text, b"\nPss_Anon:") + _kib(text, b"\nPss_Shmem:")
        return 0

    def mappings(self, process: Process) -> int:
        """Return the number of its mappings. It is exact, but takes 0.3 microseconds for each."""
        count = 0
        with contextlib.suppress(OSError):
            path = f"{self._alive_thread(process)}/maps"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                while data := os.read(fd, _READ_BYTES):
                    count += data.count(b"\n")
            finally:
                os.close(fd)
        return count

    def signal(self, process: Process, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(OSError):
            fd = os.open(str(process.pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)

    def kill_stopped_repl(self) -> None:
        """Kill the repl if a child of its own has stopped it: it would never report an end."""
        repl = self.process(REPL)
        if repl is not None and repl.is_stopped:
            self.signal(repl, signal.SIGKILL)

    def _is_open(self) -> bool:
        if self._proc < 0:
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{self._init_pid}/root/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                # Until init has its root, this is the host's /proc.
                own = os.stat(f"/proc/{self._init_pid}/ns/pid")
                with contextlib.suppress(OSError):
                    if os.path.samestat(own, os.stat(f"{INIT}/ns/pid", dir_fd=fd)):
                        self._proc = fd
                if self._proc != fd:
                    os.close(fd)
        return self._proc >= 0

    def _alive_thread(self, process: Process) -> str:
        if process.state not in _ENDED:
            return str(process.pid)
        # The first thread has no memory any more, and the others have theirs.
        fd = os.open(f"{process.pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            threads = [int(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        return f"{process.pid}/task/{max(threads)}"

    def _process(self, name: str) -> Process:
        text = self._read(f"{name}/stat")
        # The second field is a name in brackets, which may hold anything.
        fields = text[text.rindex(b")") + 2 :].split()
        seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        with contextlib.suppress(OSError, ValueError, IndexError):
            # In nanoseconds, but of the first thread alone. The other figure counts hundredths.
            seconds = max(seconds, int(self._read(f"{name}/schedstat").split()[0]) / 1e9)
        return Process(
            pid=int(name),
            started=int(fields[19]),
            state=chr(fields[0][0]),
            threads=int(fields[17]),
            seconds=seconds,
            reaped_seconds=(int(fields[13]) + int(fields[14])) / _TICKS,
        )

    def _read(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            return os.read(fd, _READ_BYTES)
        finally:
            os.close(fd)


def _kib(text: bytes, name: bytes) -> int:
    # A line such as `RssAnon:  12 kB`. A process that has ended has none.
    at = text.find(name)
    if at < 0:
        return 0
    start = at + len(name)
    return int(text[start : text.index(b" kB", start)]) << 10
