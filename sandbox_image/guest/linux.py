"""prctl(2) and setrlimit(2) for processes inside the walls."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource

from .procfs import read, write

_ARENA = 64 << 20

_prctl = ctypes.CDLL(None)["prctl"]  # looked up once, and not by each process that is forked


def set_dumpable() -> None:
    """Let this process read its own /proc, which the change of ids has closed to it."""
    _prctl(4, ctypes.c_ulong(1), 0, 0, 0)


def set_undumpable() -> None:
    """Close this process's /proc, and so its descriptors, to others of its user."""
    _prctl(4, ctypes.c_ulong(0), 0, 0, 0)


def die_first() -> None:
    """Where memory runs out, let the kernel take this process and its children before any other."""
    with contextlib.suppress(OSError):
        write("/proc/self/oom_score_adj", "1000")


def set_process_name(name: str) -> None:
    """The name that ``ps`` shows, at most 15 bytes."""
    _prctl(15, name.encode(), 0, 0, 0)


def insist_on_limits() -> None:
    """Have limits hold that gVisor takes otherwise; elsewhere nothing changes.

    It counts processor time from where the limit is set, in that process, and RLIMIT_DATA counts no mapping there, so
    that RLIMIT_AS must do.
    """
    resource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, most + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return
    fields = dict(
        line.split(":", 1) for line in read("/proc/self/status").splitlines() if line.startswith("Vm")
    )
    size, data = (int(fields[name].split()[0]) << 10 for name in ("VmSize", "VmData"))
    # Of a thread's arena, glibc reserves this much that counts here alone (malloc(3): at most 8 for a processor).
    threads = min(
        8 * (os.cpu_count() or 1), *filter(lambda n: n >= 0, resource.getrlimit(resource.RLIMIT_NPROC))
    )
    limit = most + size - data + threads * _ARENA
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
