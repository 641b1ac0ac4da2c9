"""Call prctl(2) and capset(2), which Python lacks."""

from __future__ import annotations

import ctypes
import os
import signal
from ctypes import c_char_p, c_int, c_ulong, c_void_p
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

_CAPABILITY_VERSION_3 = 0x20080522

# Functions are looked up once, here. A forked process then writes no page to find them.
_libc = ctypes.CDLL(None, use_errno=True)


def function(name: str, *arguments: type[Any]) -> Any:
    """Return a function of libc that takes these ctypes."""
    found: Any = _libc[name]
    found.argtypes = arguments
    return found


def check(result: int) -> int:
    """Return a libc call's result, or raise OSError."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_prctl = function("prctl", c_int, c_ulong, c_void_p, c_ulong, c_ulong)
_prctl_text = function("prctl", c_int, c_char_p)
_capset = function("capset", c_void_p, c_void_p)


def prctl(option: int, argument: int = 0, pointer: object = None) -> None:
    """Call prctl(2)."""
    check(_prctl(option, argument, pointer, 0, 0))


def set_process_name(name: str) -> None:
    """Set the name that ``ps`` shows, of 15 bytes."""
    check(_prctl_text(PR_SET_NAME, name.encode()))


def set_dumpable() -> None:
    """Open /proc/PID to this process again."""
    # A change of ids closes it (proc(5)).
    prctl(PR_SET_DUMPABLE, 1)


def set_undumpable() -> None:
    """Close /proc/PID to others of this user."""
    # And so its descriptors (proc(5)) and its memory (ptrace(2)).
    prctl(PR_SET_DUMPABLE, 0)


def set_no_new_privs() -> None:
    """Let execve(2) grant no privileges."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def kill_with_parent() -> None:
    """Die when the parent dies."""
    # A later change of ids would undo this (prctl(2)).
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def clear_capabilities() -> None:
    """Clear all capabilities of this process (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    check(_capset(header, (ctypes.c_uint32 * 6)()))
