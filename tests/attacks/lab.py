"""What the attacks share: a row of the catalogue as data, the same code outside, canaries, and the watch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from attacks.machine import Machine, names
from process_support import processes_named
from support import SMALL, Open

from supdist.engine import CellResult, Outcome, Sandbox

OK = Outcome.OK
DEATHS = (Outcome.CRASHED, Outcome.KILLED)

REFUSALS = frozenset({"EPERM", "EACCES", "ENOENT", "ENOSYS", "EROFS"})

ATTEMPT = """
import errno, os
def attempt(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:
        return type(error).__name__
    return "did"
"""
"""Guest code: what became of a call, as the name of its errno, or ``did``."""

RAW = """
import gc, os, sys
protocol = sys.modules["supdist.sandbox_image.protocol"]
primitives = next(found for found in gc.get_objects() if type(found).__name__ == "Primitives")
channel = primitives._channel
cell = primitives._current_cell()
def raw(data):
    view = memoryview(data)
    while view:
        view = view[os.write(channel._sock.fileno(), view):]
def send(*fields):
    raw(protocol.frame(protocol.encode(fields)))
"""
"""Guest code: frames written to the repl's own stream, past its library. ``send(22, ...)`` is a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A row: code for a cell, and how that cell must end.

    Attributes:
        id: the catalogue's, and a word where a row has several attacks.
        code: what the guest runs.
        expect: the outcomes that are right.
        lost: whether the interpreter is gone afterwards; None where both are right.
        says: text that the guest must have written; for what only it can see.
        detail: text of the host's that must be in the result.
        timeout: the cell's, in seconds.
        within: seconds by which the verdict must be there.
        limits: the sandbox's, where they differ from the small ones.
    """

    id: str
    code: str
    expect: tuple[Outcome, ...] = (OK,)
    lost: bool | None = False
    says: str = ""
    detail: str = ""
    timeout: float = 2.0
    within: float = 4.0
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])


def breach(row: str, code: str, detail: str = "") -> Attack:
    """Return an attack that ends the session at once, as a violation of the protocol."""
    return Attack(
        id=row,
        code=RAW + code + "\nimport time; time.sleep(60)",
        expect=(Outcome.PROTOCOL_VIOLATION,),
        lost=True,
        detail=detail,
        timeout=5,
        within=1.5,
    )


def cpu_of_shims() -> float:
    """Seconds of processor time that all shims have used."""
    used = 0.0
    for pid in processes_named("supdist-shim"):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(psutil.Process(pid).cpu_times()[:2])
    return used


def name(attack: Attack) -> str:
    """For ``ids=``."""
    return attack.id


@dataclass
class Arena:
    """A place for one attack, watched while it goes on.

    The limits are what the watch asserts at the end; an attack may set others before it begins.
    """

    open_sandbox: Open
    machine: Machine
    most_seconds: float = 12.0
    most_growth: int = 192 << 20
    lags: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])
    growth: int = 0
    answers: int = 0
    slowest_answer: float = 0.0
    over: bool = False
    opened: int = 0

    def open(self, **options: Any) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox with small limits; see the fixture ``small``."""
        self.opened += 1
        return self.open_sandbox(**{"grace": SMALL["grace"] * self.machine.slowness, "query": "", **options})

    @property
    def starts(self) -> float:
        """Seconds that the starts so far may have taken, where a start is no fork but a container."""
        return self.opened * self.machine.start_seconds

    async def carry_out(self, attack: Attack) -> CellResult:
        """Run a row in a sandbox of its own and judge what the host can judge."""
        async with self.open(**attack.limits) as sandbox:
            slower = self.machine.slowness - 1
            # Where the clock itself is not tested, it gets more time, and the verdict as much more.
            more = 0.0 if Outcome.TIMEOUT in attack.expect else attack.timeout * slower
            within = attack.within + more + SMALL["grace"] * slower
            result = await timed(sandbox, attack.code, attack.timeout + more, within)
            assert result.outcome in attack.expect, result
            assert attack.lost is None or result.state_lost is attack.lost, result
            assert attack.says in result.stdout, result
            assert attack.detail in result.detail, result
            if not result.state_lost:
                await assert_alive(sandbox)
        return result

    async def beat(self) -> None:
        """Note how late the event loop is, and how large the process becomes."""
        start = resident()
        while not self.over:
            due, waited = time.monotonic() + 0.02, waited_for_processor()
            await asyncio.sleep(0.02)
            now = time.monotonic()
            self.lags.append((due, now, now - due - (waited_for_processor() - waited)))
            self.growth = max(self.growth, resident() - start)

    async def ask(self, neighbour: Sandbox) -> None:
        """Have another sandbox answer all the while."""
        while not (self.over and self.answers):
            started = time.monotonic()
            result = await neighbour.execute("print(1 + 1)")
            assert result.stdout == "2\n", result
            self.slowest_answer = max(self.slowest_answer, time.monotonic() - started)
            self.answers += 1
            await asyncio.sleep(0.05)


async def timed(sandbox: Sandbox, code: str, timeout: float = 2.0, within: float = 4.0) -> CellResult:
    """Run a cell; its verdict must come in time."""
    started = time.monotonic()
    result = await sandbox.execute(code, timeout=timeout)
    assert time.monotonic() - started <= within, result
    assert type(result.outcome) is Outcome
    return result


async def assert_alive(sandbox: Sandbox) -> None:
    """The next cell of the same session works."""
    result = await sandbox.execute("print(1 + 1)")
    assert (result.outcome, result.stdout) == (OK, "2\n"), result


async def outside(code: str, *, timeout: float = 20.0, **environ: str) -> str:
    """The same code as this user on the host, in an interpreter without walls; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environ}, start_new_session=True,
    )  # fmt: skip
    async with asyncio.timeout(timeout):
        output, _ = await process.communicate()
    return output.decode(errors="replace")


async def comes_true(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    """Whether it holds before the deadline: what ends, ends in processes and threads of its own.

    A thread looks, since a container daemon that is asked may be slow.
    """
    deadline = time.monotonic() + seconds
    while not (holds := await asyncio.to_thread(condition)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return holds


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class ShimGrowth:
    """How much any shim has grown since this was made."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        for pid in processes_named("supdist-shim"):
            with contextlib.suppress(OSError):
                self._before[pid] = resident(pid)
        self.most = 0

    async def watch(self, sandbox: Sandbox, code: str, seconds: float = 3) -> CellResult:
        """Run code for so long at most, looking all the while."""
        deadline = time.monotonic() + seconds
        task = asyncio.create_task(sandbox.execute(code, timeout=2))
        while not task.done() and time.monotonic() < deadline:
            self.look()
            await asyncio.sleep(0.05)
        if not task.done():
            await sandbox.interrupt()
        return await task

    def look(self) -> None:
        """Measure now; a shim that has ended has nothing."""
        for pid, size in self._before.items():
            with contextlib.suppress(OSError):
                self.most = max(self.most, resident(pid) - size)


def waited_for_processor() -> float:
    """Seconds that this thread was ready while the processor was others': no fault of the loop's.

    Other processes (schedstat) or other machines of the hypervisor (steal, of all processors) had it.
    """
    others = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    with open("/proc/stat", encoding="ascii") as file:
        steal = int(file.readline().split()[8])
    return others + steal / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Held:
    """What the engine's process and its sandboxes hold of the machine."""

    processes: Counter[str]
    others: Counter[str]

    @classmethod
    def now(cls, machine: Machine) -> Held:
        """As it is now."""
        others = {
            "descriptors": psutil.Process().num_fds(),
            "threads": _foreign_threads(),
            "mounts": machine.mounts(),
            "cgroups": machine.cgroups(),
            **machine.others(),
        }
        return cls(names(machine.processes()), Counter(others))

    def more_than(self, before: Held) -> dict[str, int]:
        """What there is more of now than before, and how much more."""
        return dict((self.processes - before.processes) + (self.others - before.others))


def _foreign_threads() -> int:
    """Threads of libraries. Python's own, an executor's among them, stay for the next to use."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    own = {
        Path("/proc/self/comm").read_text().strip(),
        *(thread.name[:15] for thread in threading.enumerate()),
    }
    return sum(name not in own for name in names)


async def settled(machine: Machine) -> Held:
    """What is held once nothing changes any more."""
    held, same = Held.now(machine), 0
    deadline = time.monotonic() + 5
    while same < 10 and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        again = await asyncio.to_thread(Held.now, machine)
        same = same + 1 if again == held else 0
        held = again
    return held


class Listener:
    """A canary: a socket of the host that counts who speaks to it."""

    def __init__(self, family: int, address: Any, kind: int | None = None) -> None:
        import socket

        self._socket = socket.socket(family, kind or socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(address)
        if self._socket.type == socket.SOCK_STREAM:
            self._socket.listen(64)
        self.address: Any = self._socket.getsockname()

    def count(self) -> int:
        """Connections or packets that have come since the last time."""
        import socket

        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                if self._socket.type == socket.SOCK_STREAM:
                    self._socket.accept()[0].close()
                else:
                    self._socket.recv(65536)
                count += 1
        return count

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@contextlib.asynccontextmanager
async def host_process() -> AsyncGenerator[psutil.Process]:
    """A canary: a process of the host that sleeps."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: neither gone, nor dead and not yet reaped, nor stopped."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
