"""Apply Landlock (landlock(7), Linux 5.13)."""

from __future__ import annotations

import ctypes
import os

from . import syscalls as sc

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1

# The access rights on files that each version of the interface knows (linux/landlock.h).
_FS_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_NET_BIND_CONNECT = 3  # version 4
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # version 6


class _Ruleset(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("files", "net", "scoped"))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict(*, read: tuple[str, ...], write: tuple[str, ...]) -> int:
    """Allow to read and execute below ``read``, and all but device nodes below ``write``; no TCP.

    Returns:
        The version of the interface; 0 without Landlock.

    Raises:
        OSError: the kernel refuses.
    """
    # This repeats what the namespaces enforce, and still holds if one of them fails. It needs no_new_privs,
    # and descendants inherit it.
    try:
        version = sc.syscall(_CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        # Not in this kernel, switched off, or refused by a filter around this process.
        return 0
    known = _FS_ALL[min(version, 5)]
    rules = _Ruleset(
        known,
        # No rule follows that allows a port.
        _NET_BIND_CONNECT if version >= 4 else 0,
        # Abstract sockets and signals stay inside this domain.
        _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0,
    )
    # An older kernel refuses a larger structure (E2BIG).
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = sc.syscall(_CREATE, ctypes.byref(rules), size, 0)
    try:
        for path in read:
            _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in write:
            # A device node would lead around the device list of the sandbox.
            _allow(ruleset, path, known & ~(_MAKE_CHAR | _MAKE_BLOCK))
        sc.syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, access: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _Beneath(access, folder)
        sc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)
