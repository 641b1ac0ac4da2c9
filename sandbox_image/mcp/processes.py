"""Adopt, reap and kill all processes below this one. No other code may wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from .. import linux

_POLL_SECONDS = 0.01


def adopt_orphans() -> None:
    """Become the parent of orphans below this process, and reap them."""
    # Without it they would go to PID 1, where `descendants` does not find them (prctl(2)).
    linux.adopt_orphans()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)


def drop_privileges() -> None:
    """Drop all capabilities, for this process and its children."""
    # Otherwise execve(2) would give them back to root.
    linux.set_no_new_privs()
    linux.clear_capabilities()


def close_own_files() -> None:
    """Close /proc/PID to other processes of this user."""
    # The guest must not write to the server's stdout, which it could open there (proc(5)).
    linux.set_undumpable()


def reap() -> None:
    """Reap all ended children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def end_all(seconds: float) -> None:
    """Kill all processes below this one and wait for their end.

    Raises:
        TimeoutError: some were left.
    """
    async with asyncio.timeout(seconds):
        while below := _stop_all():
            _signal(below, signal.SIGKILL)
            reap()
            # A killed process ends a moment later.
            await asyncio.sleep(_POLL_SECONDS)


def _stop_all() -> set[int]:
    # Stopped processes cannot fork while others are killed.
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
    """Return the ids of all processes below this one, with zombies."""
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
