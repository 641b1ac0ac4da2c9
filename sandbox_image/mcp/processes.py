"""The processes below this one: adopt, reap and kill them.

For a program that has no children but its guest's. No other code may wait for children of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from .. import linux

_LOOK_SECONDS = 0.01


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process, and reap it when it ends (prctl(2))."""
    linux.adopt_orphans()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)


def give_up_rights() -> None:
    """Drop all capabilities for good, of this process and of those below it, also where it is root."""
    linux.set_no_new_privs()
    linux.clear_capabilities()


def close_own_files() -> None:
    """Close /proc/PID of this process, and so its stdout, to other processes of its user (proc(5))."""
    linux.set_undumpable()


def reap() -> None:
    """Reap every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def end_all(seconds: float) -> None:
    """Kill every process below this one and wait for their end.

    Raises:
        TimeoutError: something was left after so many seconds.
    """
    async with asyncio.timeout(seconds):
        while below := _stop_all():
            _signal(below, signal.SIGKILL)
            reap()
            # A killed process ends a moment later.
            await asyncio.sleep(_LOOK_SECONDS)


def _stop_all() -> set[int]:
    """Stop all of them, so that none forks while others are killed. Return their ids."""
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
    """Return every process below this one, zombies too."""
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
