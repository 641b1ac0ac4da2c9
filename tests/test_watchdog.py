"""What counts and holds a sandbox without control groups: the arithmetic, with time passed in."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable

import pytest

from supdist.engine import Outcome, SandboxConfig
from supdist.engine.jail.cgroups import Cgroup
from supdist.engine.jail.duty_cycle import DutyCycle
from supdist.engine.jail.meter import CgroupMeter
from supdist.engine.jail.process_tree import Memory, Process, ProcessTree
from supdist.engine.jail.processor_share import ProcessorShare, ProcessorTime
from supdist.engine.jail.socket_memory import SocketMemory, open_socket
from supdist.engine.jail.watchdog import Watchdog
from supdist.engine.sandbox.config import Isolation
from supdist.sandbox_image.protocol import Enforcement, Facts, ResourceLimits

MIB = 1 << 20
LIMITS = SandboxConfig(memory="64MiB", pids=8).resource_limits()
Signalled = list[tuple[int, signal.Signals]]


def process(
    pid: int, seconds: float = 0.0, reaped: float = 0.0, state: str = "S", threads: int = 1
) -> Process:
    return Process(pid, 100 + pid, state, threads, seconds, reaped)


class FakeTree(ProcessTree):
    """Processes as the test sets them."""

    def __init__(self, *processes: Process) -> None:
        super().__init__(0)
        self.now = list(processes)
        self.used = Memory(MIB, 0)
        self.shared: int | None = None
        self.signalled: Signalled = []
        self.obeys = True

    def processes(self) -> list[Process]:
        """See ``ProcessTree.processes``."""
        return list(self.now)

    def process(self, pid: int) -> Process | None:
        """See ``ProcessTree.process``."""
        return next((each for each in self.now if each.pid == pid), None)

    def memory(self, process: Process) -> Memory:
        """See ``ProcessTree.memory``."""
        return self.used

    def proportional_memory(self, process: Process) -> int:
        """See ``ProcessTree.proportional_memory``."""
        return self.used.resident if self.shared is None else self.shared

    def signal(self, process: Process, number: signal.Signals) -> None:
        """See ``ProcessTree.signal``."""
        self.signalled.append((process.pid, number))
        state = {signal.SIGSTOP: "T", signal.SIGCONT: "R"}.get(number)
        if state is not None and self.obeys:
            self.now = [each._replace(state=state) if each.pid == process.pid else each for each in self.now]


def watchdog(tree: FakeTree, duty: DutyCycle | None = None) -> Watchdog:
    return Watchdog(tree, LIMITS, sockets=None, duty=duty, processors=2, clock=lambda: 0.0)


# Processor time


def test_a_share_runs_as_long_as_it_has_saved_and_waits_as_long_as_it_owes() -> None:
    share = ProcessorShare(cpus=0.5, processors=2, now=0.0)
    share.use(0.0, now=10.0)
    assert share.resume_at is None
    share.use(0.25, now=10.1)
    # It had saved 0.05 s of processor time, and owes 0.2 s of it.
    assert share.resume_at == pytest.approx(10.1 + 0.2 / 0.5)


@pytest.mark.parametrize("cpus", [0.01, 0.02, 0.5, 1.5])
def test_over_seconds_no_more_is_used_than_the_share(cpus: float) -> None:
    """Two processors that are always wanted."""
    share = ProcessorShare(cpus, processors=2, now=0.0)
    now, used = 0.0, 0.0
    while now < 60:
        before, now = now, share.check_at(threads=8)
        share.use(2 * (now - before), now)
        used += 2 * (now - before)
        now = share.resume_at or now
        share.use(0.0, now)
    assert used / now == pytest.approx(cpus, rel=0.1)


def test_what_cannot_exceed_its_share_is_looked_at_ten_times_a_second() -> None:
    share = ProcessorShare(cpus=1.0, processors=64, now=0.0)
    assert share.check_at(threads=1) == pytest.approx(0.1)
    assert share.check_at(threads=64) == pytest.approx(0.01)


def test_time_of_children_counts_once_waited_for_or_not() -> None:
    time = ProcessorTime()
    assert time.add([process(2, 1.0)]) == pytest.approx(1.0)
    assert time.add([process(2, 1.0), process(3, 0.5)]) == pytest.approx(0.5)
    # It ran for 0.1 s more, and its parent has waited for it.
    assert time.add([process(2, 1.0, reaped=0.6)]) == pytest.approx(0.1)
    # Another lived between two looks.
    assert time.add([process(2, 1.0, reaped=0.9)]) == pytest.approx(0.3)
    # A third that nobody waits for has what was seen.
    assert time.add([process(2, 1.0, reaped=0.9), process(4, 0.2)]) == pytest.approx(0.2)
    assert time.add([process(2, 1.0, reaped=0.9)]) == 0.0
    assert time.total == pytest.approx(2.1)


def duty(tree: FakeTree) -> DutyCycle:
    return DutyCycle(tree, ProcessorShare(cpus=0.1, processors=2, now=0.0))


def test_all_but_init_are_stopped_and_continued() -> None:
    tree = FakeTree(process(1), process(2), process(3))
    cycle = duty(tree)
    cycle.update(0.12, now=1.0)
    assert tree.signalled == [(2, signal.SIGSTOP), (3, signal.SIGSTOP)]
    assert cycle.next_check(1.0, threads=2) == pytest.approx(1.05)
    tree.signalled.clear()
    cycle.update(0.0, now=2.01)
    assert tree.signalled == [(2, signal.SIGCONT), (3, signal.SIGCONT)]
    assert not cycle.is_stopping


def test_what_the_guest_has_stopped_stays_so() -> None:
    tree = FakeTree(process(1), process(2), process(3, state="T"))
    cycle = duty(tree)
    cycle.update(0.12, now=1.0)
    cycle.update(0.0, now=2.01)
    assert {pid for pid, _ in tree.signalled} == {2}


def test_a_child_forked_while_the_others_are_stopped_is_stopped_too() -> None:
    class Forking(FakeTree):
        def signal(self, process: Process, number: signal.Signals) -> None:
            if not any(each.pid == 9 for each in self.now):
                self.now.append(Process(9, 1, "R", 1, 0.0, 0.0))
            super().signal(process, number)

    tree = Forking(process(1), process(2))
    duty(tree).update(0.12, now=1.0)
    assert tree.signalled == [(2, signal.SIGSTOP), (9, signal.SIGSTOP)]


def test_an_interrupted_cell_runs_at_once() -> None:
    tree = FakeTree(process(1), process(2))
    cycle = duty(tree)
    cycle.update(5.0, now=1.0)
    cycle.let_run()
    assert tree.signalled[-1] == (2, signal.SIGCONT)
    assert not cycle.is_stopping


def test_a_sandbox_that_continues_itself_is_ended() -> None:
    tree = FakeTree(process(1), process(2, state="R"))
    tree.obeys = False
    cycle = duty(tree)
    reasons = [cycle.update(0.3, now=1 + number / 10) for number in range(8)]
    assert reasons[0] is None
    assert "ran on while it was stopped" in (reasons[-1] or "")


def test_a_repl_that_its_own_child_stopped_is_killed_unless_the_shim_did_it() -> None:
    tree = FakeTree(process(1), process(2, state="T"))
    watchdog(tree).check(1.0)
    assert tree.signalled == [(2, signal.SIGKILL)]
    tree = FakeTree(process(1), process(2, seconds=0.0))
    cycle = duty(tree)
    dog = watchdog(tree, cycle)
    dog.check(1.0)
    tree.now[1] = process(2, seconds=9.0)
    dog.check(2.0)
    dog.check(2.1)
    assert {number for _, number in tree.signalled} == {signal.SIGSTOP}


class CgroupWithoutCpu(Cgroup):
    """A group as systemd gives it to a user whose units ask for no ``cpu`` controller."""

    seconds = 0.0

    @property
    def limits_cpus(self) -> bool:
        """See ``Cgroup.limits_cpus``."""
        return False

    def limit(self, limits: ResourceLimits) -> None:
        """See ``Cgroup.limit``."""

    def oom_kills(self) -> int:
        """See ``Cgroup.oom_kills``."""
        return 0

    def cpu_seconds(self) -> float:
        """See ``Cgroup.cpu_seconds``."""
        return self.seconds

    def peak_memory(self) -> int:
        """See ``Cgroup.peak_memory``."""
        return 0

    def refused_forks(self) -> int:
        """See ``Cgroup.refused_forks``."""
        return 0


def test_a_control_group_without_cpu_gets_a_duty_cycle_and_says_so() -> None:
    tree, group = FakeTree(process(1), process(2)), CgroupWithoutCpu({})
    meter = CgroupMeter(group, tree, duty(tree))
    assert meter.enforcement == Enforcement("cgroup", "cgroup", "duty cycle of 0.1 s")
    assert CgroupMeter(group).enforcement.cpus is None
    meter.check(1.0)
    group.seconds = 5.0
    meter.check(1.1)
    assert tree.signalled == [(2, signal.SIGSTOP)]
    assert meter.next_check(1.1) == pytest.approx(1.15)
    meter.interrupted()
    assert tree.signalled[-1] == (2, signal.SIGCONT)


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (Enforcement("cgroup", "cgroup", "cgroup"), []),
        (Enforcement("watchdog", "rlimit", "duty cycle"), []),
        (Enforcement("cgroup", "cgroup", None), ["a limit on processor time"]),
        (Enforcement(None, None, None), ["limits on memory and processes"]),
    ],
)
def test_strict_refuses_only_where_nothing_holds(held: Enforcement, missing: list[str]) -> None:
    facts = Facts(dict.fromkeys(("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"), 1), 65534, 0,
        no_new_privs=True, seccomp=True, interfaces=["lo"], root_writable=False)  # fmt: skip
    isolation = Isolation.from_facts("process", facts, {}, held)
    assert isolation.limited is (not missing)
    assert [gap.partition(" (")[0] for gap in isolation.missing()] == missing


# Memory


def test_page_tables_and_threads_count_as_memory() -> None:
    tree = FakeTree(process(1), process(2, threads=7))
    dog = watchdog(tree)
    assert dog.check(1.0) is None
    tree.used = Memory(MIB, 40 * MIB)
    outcome, reason = dog.check(2.0) or (None, "")
    assert outcome is Outcome.OOM
    assert f"{82 * MIB + 8 * (32 << 10)} bytes" in reason


def test_pages_that_processes_share_count_once() -> None:
    tree = FakeTree(*(process(pid) for pid in range(1, 9)))
    tree.used, tree.shared = Memory(30 * MIB, 0), 4 * MIB
    dog = watchdog(tree)
    assert dog.check(1.0) is None
    assert dog.usage().peak_memory == 32 * MIB + 8 * (32 << 10)


def test_an_idle_sandbox_is_looked_at_twice_a_second_and_another_ten_times() -> None:
    tree = FakeTree(process(1), process(2))
    dog = watchdog(tree)
    dog.check(1.0)
    dog.check(2.0)
    assert dog.next_check(2.0) == pytest.approx(2.5)
    tree.now.append(process(3))
    dog.check(2.5)
    assert (dog.next_check(2.5) or 0) < 2.61


@pytest.mark.parametrize(("used", "most"), [(8 * MIB, 0.02), (30 * MIB, 0.0101)])
def test_the_less_memory_is_left_the_sooner_it_looks_again(used: int, most: float) -> None:
    tree = FakeTree(process(1), process(2, state="R"), process(3))
    tree.used = Memory(used // 3, 0)
    dog = watchdog(tree)
    dog.check(1.0)
    assert 0 < (dog.next_check(1.0) or 0) - 1.0 <= most


def test_a_look_takes_a_tenth_of_the_time_at_most() -> None:
    ticks = iter([0.0, 0.05, 1.0, 1.05])
    tree = FakeTree(process(1), process(2), process(3))
    dog = Watchdog(tree, LIMITS, sockets=None, duty=None, processors=2, clock=lambda: next(ticks))
    dog.check(1.0)
    assert dog.next_check(1.0) == pytest.approx(1.5)


# Sockets, as this kernel lists them


def pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    one.setblocking(False)
    return one, other


def fill(sock: socket.socket, size: int) -> int:
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * size)
    except BlockingIOError:
        return sent


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("size", [1, 1000, 100_000])
@pytest.mark.parametrize("closes", [False, True], ids=["open", "closed"])
def test_what_is_queued_in_sockets_counts(kind: socket.SocketKind, size: int, closes: bool) -> None:
    """Also once its sender has closed its end. Other programs' sockets are in the figures too."""
    with open_socket() as listing:
        check_queued(SocketMemory(listing), kind, size, closes=closes)


def check_queued(memory: SocketMemory, kind: socket.SocketKind, size: int, *, closes: bool) -> None:
    pairs = [pair(kind) for _ in range(40)]
    before = memory.count()
    sent = sum(fill(one, size) for one, _ in pairs)
    if closes:
        for one, _ in pairs:
            one.close()
    assert memory.count() - before > 0.9 * sent - (1 << 20)
    for one, other in pairs:
        one.close()
        other.close()


def test_connections_that_nobody_accepts_count() -> None:
    with open_socket() as listing, socket.socket(socket.AF_UNIX) as listener:
        memory = SocketMemory(listing)
        before = memory.count()
        listener.bind("")
        listener.listen(64)
        sent = 0
        for _ in range(40):
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(listener.getsockname())
                sent += fill(client, 65536)
        assert memory.count() - before > 0.9 * sent


# Limits of the engine's own


def under(limit: str, code: str) -> str:
    """What code prints in a process with a lower hard limit."""
    arguments: Iterable[str] = ("sh", "-c", f'ulimit {limit} && exec "$0" -c "$1"', sys.executable, code)
    done = subprocess.run(list(arguments), capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


OPEN = """
import asyncio
from supdist.engine import SandboxConfig, open_sandbox
async def main():
    try:
        async with open_sandbox(SandboxConfig({options})) as sandbox: print(sandbox.isolation.lowered)
    except Exception as error: print(type(error).__name__, error)
asyncio.run(main())
"""


def test_open_files_are_never_lowered_without_a_word() -> None:
    strict = under("-n 300", OPEN.format(options=""))
    assert "SandboxUnavailable" in strict
    assert "open_files=256 needs `ulimit -Hn` 512, but it is 300" in strict
    assert "best_effort" in strict
    less = under("-n 300", OPEN.format(options="isolation='best_effort'"))
    assert "open_files=256 needs" in less
    assert "SandboxUnavailable" not in less
    assert under("-n 300", OPEN.format(options="open_files=150")).strip() == "()"


@pytest.mark.parametrize(("limit", "name"), [("-t 100", "cpu_seconds"), ("-f 1000", "scratch")])
def test_nor_is_any_other_limit(limit: str, name: str) -> None:
    text = under(limit, OPEN.format(options=""))
    assert "SandboxUnavailable" in text
    assert f"{name}=" in text
