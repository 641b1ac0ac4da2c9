"""Groups 3 and 5: what the kernel counts by user, used up by one sandbox and wanted by another."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import pytest
from attacks.lab import OK, Arena, assert_alive, outside, timed
from attacks.machine import Machine


@dataclass(frozen=True)
class Count:
    """A count of the kernel's.

    Attributes:
        use_up: code that takes all that it can get; defines ``taken``.
        want: code that says what one more process gets of it.
        enough: what it says where nobody else has taken any.
        left: what it says where all is taken.
    """

    use_up: str
    want: str
    enough: str
    left: str


COUNTS = {
    "NW12": Count(
        """
import array, os, socket
taken, pairs, held = 0, [], [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
try:
    while True:
        pairs.append(socket.socketpair())
        for _ in range(20):
            pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))])
            taken += len(held)
except OSError: pass
""",
        """
import os, socket
try:
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [0])
    print("passes")
except OSError: print("refused")
""",
        "passes",
        "refused",
    ),
    "ME19": Count(
        """
import fcntl, os, time
taken = 0
def fill():
    pipes = []
    try:
        while len(pipes) < 110:
            pipes.append(os.pipe())
            if fcntl.fcntl(pipes[-1][0], fcntl.F_GETPIPE_SZ) < 65536: break
            fcntl.fcntl(pipes[-1][0], fcntl.F_SETPIPE_SZ, 1 << 20)
    except OSError: pass
    return pipes
here, out = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        kept = fill()
        os.write(out, b"x")
        time.sleep(60)
for _ in range(20): taken += len(os.read(here, 1))
more = fill()
""",
        """
import fcntl, os
pipe, _ = os.pipe()
print("large" if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) >= 65536 else "small")
""",
        "large",
        "small",
    ),
    "ME20": Count(
        """
import ctypes, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
libc = ctypes.CDLL(None)
value, taken = ctypes.c_void_p(0), 0
while taken < 500_000 and libc.sigqueue(os.getpid(), 40, value) == 0: taken += 1
""",
        """
import ctypes, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
print("queues" if ctypes.CDLL(None).sigqueue(os.getpid(), 41, ctypes.c_void_p(0)) == 0 else "refused")
""",
        "queues",
        "refused",
    ),
}


def each_has_a_user(machine: Machine) -> bool:
    """Whether the kernel counts each sandbox for itself: its own uid of this machine, or its own kernel."""
    users = [psutil.Process(pid).uids().real for pid in machine.inits()]
    return machine.has_own_kernel or len(set(users)) == len(users)


@pytest.mark.parametrize("row", COUNTS)
async def test_what_one_uses_up_another_and_its_shim_still_have(arena: Arena, row: str) -> None:
    count = COUNTS[row]
    async with arena.open(pids=40) as one, arena.open(pids=40) as other:
        for sandbox in (one, other):
            assert (await timed(sandbox, count.want)).stdout == f"{count.enough}\n"
        # Asked in the same cell: a cell that ends gives its own pipes back.
        greedy = await timed(one, count.use_up + "print(taken)" + count.want, timeout=10, within=12)
        taken, _, left = greedy.stdout.rstrip("\n").partition("\n")
        assert (greedy.outcome, int(taken) > 0) == (OK, True), greedy
        assert left == count.left or arena.machine.has_own_kernel, "it has used up its own"
        # Cells get pipes from their shim, pass through it, and print much, whoever has taken what.
        await assert_alive(other)
        assert len((await timed(other, "print('x' * 300_000)")).stdout) == 300_001
        async with arena.open() as third:
            await assert_alive(third)
        if each_has_a_user(arena.machine) or (row == "ME20" and arena.machine.has_user_namespaces):
            assert (await timed(other, count.want)).stdout == f"{count.enough}\n"


async def test_me20_signals_that_wait_are_bounded(arena: Arena) -> None:
    """The host's bound is the user's, and he has other programs."""
    count = COUNTS["ME20"].use_up + "print(taken)"
    async with arena.open() as sandbox:
        taken = int((await timed(sandbox, count, timeout=8, within=9)).stdout)
    assert taken <= 1024 or not arena.machine.has_user_namespaces
    assert int(await outside(count)) > 1024, os.getuid()
