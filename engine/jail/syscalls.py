"""Linux calls that Python 3.11 lacks; each raises OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong

from ...sandbox_image import linux
from ...sandbox_image.guest.procfs import read
from ...sandbox_image.linux import check, function
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

_PR_CAP_AMBIENT_CLEAR_ALL = 4

# Calls without a wrapper in libc. On other processors they raise SetupError.
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155},
    "aarch64": {"clone": 220, "pivot_root": 41},
}
_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_syscall = ctypes.CDLL(None, use_errno=True)["syscall"]
# PyDLL keeps the interpreter's lock (GIL) during the call, as a fork needs.
_forking_syscall = ctypes.PyDLL(None, use_errno=True)["syscall"]
_before_fork = ctypes.pythonapi["PyOS_BeforeFork"]
_after_fork_in_child = ctypes.pythonapi["PyOS_AfterFork_Child"]
_after_fork_in_parent = ctypes.pythonapi["PyOS_AfterFork_Parent"]

_unshare = function("unshare", c_int)
_mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = function("umount2", c_char_p, c_int)
_sethostname = function("sethostname", c_char_p, c_size_t)


def _number(name: str) -> int:
    try:
        return _NUMBERS[os.uname().machine][name]
    except KeyError:
        raise SetupError("processor", errno.ENOSYS) from None


def syscall(number: int, *arguments: object) -> int:
    """Call syscall(2) with ints as long, and pointers as ctypes takes them."""
    return check(_syscall(c_long(number), *(c_long(a) if isinstance(a, int) else a for a in arguments)))


def unshare(flags: int) -> None:
    """Enter new namespaces (unshare(2))."""
    check(_unshare(flags))


def fork_into(flags: int) -> int:
    """Fork into new namespaces (clone(2)), from a process with one thread."""
    # unshare(CLONE_NEWPID) would move only later children, and so cost a second fork. Stack, thread ids and
    # TLS are 0, as in fork(2). So their order, which differs by processor, does not matter.
    arguments = (c_long(_number("clone")), c_ulong(flags | signal.SIGCHLD), *(c_ulong(0),) * 4)
    # From here the interpreter holds locks: nothing may fail (C API, "Operating System Utilities").
    _before_fork()
    pid: int = _forking_syscall(*arguments)
    if pid == 0:
        _after_fork_in_child()
    else:
        _after_fork_in_parent()
    return check(pid)


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, options: str = "") -> None:
    """Call mount(2); for a read-only bind, add ``protect``."""
    kind = fstype.encode() if fstype else None
    check(_mount(os.fsencode(source), os.fsencode(target), kind, flags, options.encode() or None))


def umount(target: str) -> None:
    """Detach a mount from the tree (umount2(2), MNT_DETACH)."""
    check(_umount2(target.encode(), MNT_DETACH))


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def protect(target: str, attributes: int) -> None:
    """Add ``ATTR_*`` to a mount and those below (mount_setattr(2), Linux 5.12)."""
    # A remount would have to repeat the flags that an outer user namespace has locked.
    value = _MountAttr(attributes, 0, 0, 0)
    syscall(
        _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, ctypes.byref(value), ctypes.sizeof(value)
    )


def pivot_root(new: str, old: str) -> None:
    """Call pivot_root(2)."""
    syscall(_number("pivot_root"), new.encode(), old.encode())


def pivot_root_here() -> None:
    """Make the current directory the root, and detach the old one."""
    # With "." twice the old root is stacked on the new one (pivot_root(2), NOTES).
    pivot_root(".", ".")
    umount(".")
    os.chdir("/")


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    check(_sethostname(name.encode(), len(name.encode())))


def drop_capabilities() -> None:
    """Drop every capability for good (capabilities(7))."""
    # Without the bounding set, execve(2) of a file with capabilities grants none.
    for capability in range(int(read("/proc/sys/kernel/cap_last_cap")) + 1):
        linux.prctl(linux.PR_CAPBSET_DROP, capability)
    linux.prctl(linux.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    linux.clear_capabilities()
