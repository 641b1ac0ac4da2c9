"""The Linux calls that Python 3.11 does not offer, through libc. Each raises OSError with its errno.

What libc has no wrapper for has a number, which is known for two processors; on others it is ``SetupError`` that is raised.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from typing import Any

from ...sandbox_image.guest.procfs import read
from .setup_errors import SetupError

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

ATTR_RDONLY = 1
ATTR_NOSUID = 2
ATTR_NODEV = 4

SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# The numbers of calls that libc has no wrapper for.
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91},
}
_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_CAPABILITY_VERSION_3 = 0x20080522

# Looked up here, once: a process that is forked does not have to, nor to write the pages where it is noted.
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc["syscall"]
_forking_syscall = ctypes.PyDLL(None, use_errno=True)["syscall"]  # with the interpreter's lock kept
_before_fork = ctypes.pythonapi["PyOS_BeforeFork"]
_after_fork_in_child = ctypes.pythonapi["PyOS_AfterFork_Child"]
_after_fork_in_parent = ctypes.pythonapi["PyOS_AfterFork_Parent"]


def _function(name: str, *arguments: type[Any]) -> Any:
    function: Any = _libc[name]
    function.argtypes = arguments
    return function


def _check(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_unshare = _function("unshare", c_int)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", c_char_p, c_int)
_prctl = _function("prctl", c_int, c_ulong, c_void_p, c_ulong, c_ulong)
_set_name = _function("prctl", c_int, c_char_p)
_sethostname = _function("sethostname", c_char_p, c_size_t)


def _number(name: str) -> int:
    try:
        return _NUMBERS[os.uname().machine][name]
    except KeyError:
        raise SetupError("processor", errno.ENOSYS) from None


def syscall(number: int, *arguments: object) -> int:
    """syscall(2). A number is passed as a long; a pointer is what ctypes takes for one.

    Raises:
        OSError: the kernel's answer.
    """
    return _check(_syscall(c_long(number), *(c_long(a) if isinstance(a, int) else a for a in arguments)))


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name for new ones."""
    _check(_unshare(flags))


def fork_into(flags: int) -> int:
    """``os.fork`` into the new namespaces that ``flags`` name, by clone(2). The child is PID 1 if that is one of them.

    ``unshare`` puts a process's children into a new PID namespace, and not the process: it would take two forks. Python
    is told of it as its documentation asks of whatever "clones the current process" (C API, PyOS_BeforeFork). What
    libc notes of a thread's id is the parent's until the child forks: for processes of one thread.
    """
    # No stack, no ids to be written, no thread's area: as fork does, and zero in whatever order a processor has them.
    arguments = (c_long(_number("clone")), c_ulong(flags | signal.SIGCHLD), *(c_ulong(0),) * 4)
    _before_fork()  # the interpreter holds locks from here on: nothing that could fail
    pid: int = _forking_syscall(*arguments)
    if pid == 0:
        _after_fork_in_child()
    else:
        _after_fork_in_parent()
    return _check(pid)


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, options: str = "") -> None:
    """mount(2). A read-only bind needs a second call with ``MS_REMOUNT``."""
    kind = fstype.encode() if fstype else None
    _check(_mount(os.fsencode(source), os.fsencode(target), kind, flags, options.encode() or None))


def umount(target: str) -> None:
    """Detach a mount from the tree at once; it ends when its last user does."""
    _check(_umount2(target.encode(), MNT_DETACH))


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def protect(target: str, attributes: int) -> None:
    """Add ``ATTR_*`` to a mount and to all mounts below it (mount_setattr(2), Linux 5.12).

    Unlike a remount it leaves the flags alone that an outer user namespace has locked.
    """
    value = _MountAttr(attributes, 0, 0, 0)
    syscall(
        _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, ctypes.byref(value), ctypes.sizeof(value)
    )


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    syscall(_number("pivot_root"), new.encode(), old.encode())


def pivot_root_here() -> None:
    """Make the current directory, a mount, the root, and let go of the old one.

    Both arguments are ``.``: the old root is stacked on the new and detached (see pivot_root(2), NOTES).
    """
    pivot_root(".", ".")
    umount(".")
    os.chdir("/")


def prctl(option: int, argument: int = 0, pointer: object = None) -> None:
    """prctl(2) with a number as argument, and perhaps a pointer as ctypes takes one."""
    _check(_prctl(option, argument, pointer, 0, 0))


def set_name(name: str) -> None:
    """The name that ``ps`` shows, at most 15 bytes."""
    _check(_set_name(PR_SET_NAME, name.encode()))


def sethostname(name: str) -> None:
    """Name this UTS namespace."""
    _check(_sethostname(name.encode(), len(name.encode())))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Give up every capability, for this process and for all that it will ever start."""
    for capability in range(int(read("/proc/sys/kernel/cap_last_cap")) + 1):
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    syscall(_number("capset"), ctypes.byref(header), ctypes.byref(nothing))
