"""prctl(2) for processes inside the walls."""

from __future__ import annotations

import contextlib
import ctypes

_libc = ctypes.CDLL(None, use_errno=True)


def set_dumpable() -> None:
    """Let this process read its own /proc, which the change of ids has closed to it."""
    _libc.prctl(4, ctypes.c_ulong(1), 0, 0, 0)


def set_undumpable() -> None:
    """Close this process's /proc, and so its descriptors, to others of its user."""
    _libc.prctl(4, ctypes.c_ulong(0), 0, 0, 0)


def die_first() -> None:
    """Where memory runs out, let the kernel take this process and its children before any other."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def set_process_name(name: str) -> None:
    """The name that ``ps`` shows, at most 15 bytes."""
    _libc.prctl(15, name.encode(), 0, 0, 0)
