"""The processes below this one: taken over when their parents die, reaped, killed to the last.

For a program whose only children are its guest's: nobody else may wait for children of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from .. import linux

_LOOK_SECONDS = 0.01


def adopt_orphans() -> None:
    """From now on what loses its parent below this process becomes its child, and is reaped when it ends."""
    linux.adopt_orphans()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)


def give_up_rights() -> None:
    """Be without capabilities, and unable to gain any, as everything below this process will be: root too."""
    linux.set_no_new_privs()
    linux.clear_capabilities()


def close_own_files() -> None:
    """Close /proc/PID of this process, and so its stdout, to other processes of its user that have no capabilities."""
    linux.set_undumpable()


def reap() -> None:
    """Bury every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def end_all(seconds: float) -> None:
    """Kill everything below this process, until nothing is left of it.

    Raises:
        TimeoutError: something was left after so many seconds.
    """
    async with asyncio.timeout(seconds):
        while below := _stop_all():
            _signal(below, signal.SIGKILL)
            reap()
            await asyncio.sleep(_LOOK_SECONDS)  # to die takes them a moment


def _stop_all() -> set[int]:
    """All of them, stopped: what forks faster than it is killed is held, with its places, before any of it is killed."""
    stopped: set[int] = set()
    while fresh := descendants() - stopped:
        _signal(fresh, signal.SIGSTOP)
        stopped |= fresh
    return stopped


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants() -> set[int]:
    """Every process below this one, dead ones that wait to be reaped too."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (parent := _parent(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    fresh = [os.getpid()]
    while fresh:
        fresh = [child for parent in fresh for child in children.get(parent, []) if child not in found]
        found.update(fresh)
    return found


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it has just ended
        return None
