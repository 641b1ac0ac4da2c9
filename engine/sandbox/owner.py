"""Identifies the engine process that owns a container or folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def current_owner() -> str:
    """Return ``boot:namespace:pid:start`` of this process."""
    return f"{_place()}:{os.getpid()}:{_start_time(os.getpid())}"


def has_ended(owner: str) -> bool:
    """Return whether the owner has surely ended."""
    # Of a process on another machine, or in another PID namespace, nothing is known here.
    with contextlib.suppress(ValueError):
        boot, namespace, pid, started = owner.split(":")
        if f"{boot}:{namespace}" == _place() and pid.isdecimal():
            return _start_time(int(pid)) != started
    return False


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def _start_time(pid: int) -> str:
    try:
        # proc_pid_stat(5), field 22, in clock ticks. The name before it may hold brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
