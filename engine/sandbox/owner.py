"""Whose a container or folder is: the process that made it, named so that any other can tell whether it still lives."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def own_lease() -> str:
    """This process, by the machine's boot, the PID namespace, the pid and when it started (proc_pid_stat(5), field 22)."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def has_ended(lease: str) -> bool:
    """Whether its process has surely ended. Of one on another machine, or in another PID namespace, nothing can be said."""
    with contextlib.suppress(ValueError):
        boot, namespace, pid, started = lease.split(":")
        if f"{boot}:{namespace}" == _place() and pid.isdecimal():
            return _started(int(pid)) != started
    return False


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """In clock ticks since the boot; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
