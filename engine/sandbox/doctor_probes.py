"""Probes of the doctor. The engine sends this file as source into a sandbox, and never imports it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import socket
import stat
import time
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# name: (number on x86_64, number on aarch64). With these arguments an allowed call does no harm.
_FORBIDDEN_CALLS = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265), "process_vm_readv": (310, 270), "pidfd_getfd": (438, 438),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273), "reboot": (169, 142),
    "swapon": (167, 224), "syslog": (103, 116), "fsopen": (430, 430), "move_mount": (429, 429),
    "clone3": (435, 435), "kcmp": (312, 272), "quotactl": (179, 60), "acct": (163, 89), "chroot": (161, 51),
}  # fmt: skip
_CALL_ARGUMENTS = (-1, 0, 0, 0, 0, 0)
_SYSTEM_FOLDERS = ("/", "/etc", "/usr/lib", "/bin", os.path.dirname(os.__file__), "/proc/sys/kernel", "/dev")
# mem(4): null, zero, full, random, urandom.
_HARMLESS_DEVICES = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)}
_SCRATCH_MIB = 64


def look_around(secret: str, file: str, port: int, abstract: str, path: str) -> dict[str, Any]:
    """Return what this sandbox sees, and reaches of the host's secret, file, port and sockets."""
    dialled = _connect(socket.AF_INET, ("127.0.0.1", port))
    _connect(socket.AF_UNIX, "\0" + abstract)
    _connect(socket.AF_UNIX, path)
    return {
        "leaks": secret in _read(file),
        "writable": [folder for folder in _SYSTEM_FOLDERS if _is_writable(folder)],
        "paths": _host_paths(),
        "environment": any(
            secret in _read(f"/proc/{pid}/environ") for pid in os.listdir("/proc") if pid.isdecimal()
        ),
        "dial": dialled,
        "interfaces": [line.split(":")[0].strip() for line in _read("/proc/net/dev").splitlines()[2:]],
        "routes": len(_read("/proc/net/route").splitlines()[1:]),
        **_identity(),
        "allowed": [name for name in _FORBIDDEN_CALLS if _is_allowed(name)],
        "tried": len(_FORBIDDEN_CALLS),
        "families": [family for family in range(46) if _opens(family)],
        "devices": _other_devices(),
        "scratch": _fill_scratch(),
    }


def use_memory() -> None:
    """Let eight children use 24 MiB each, until one is killed."""
    for _ in range(8):
        if os.fork() == 0:
            held = bytearray(24 << 20)
            for at in range(0, len(held), 4096):
                held[at] = 1
            time.sleep(5)
            os._exit(0)
    for _ in range(8):
        if os.wait()[1]:
            return


def count_children() -> int:
    """Fork until it fails, and return the number of children."""
    children = 0
    with contextlib.suppress(BlockingIOError):
        while children < 200:
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            children += 1
    return children


def burn(seconds: float) -> float:
    """Use all processors for some time; return the processor time that four children got."""
    for _ in range(4):
        if os.fork() == 0:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass
            os._exit(0)
    for _ in range(4):
        os.wait()
    return sum(os.times()[2:4])


def never_stop() -> None:
    """Ignore interrupts, and loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pass


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _is_writable(folder: str) -> bool:
    try:
        open(folder + "/supdist-probe", "w").close()
    except OSError:
        return False
    return True


def _host_paths() -> list[str]:
    # proc_pid_mountinfo(5): field 4 is the path inside the file system.
    lines = [line.split() for line in _read("/proc/self/mountinfo").splitlines()]
    own = ("overlay", "tmpfs", "proc", "devtmpfs")
    return [line[3] for line in lines if line[line.index("-") + 1] not in own]


def _connect(family: int, address: Any) -> int:
    with socket.socket(family) as sock:
        sock.settimeout(1)
        try:
            sock.connect(address)
        except OSError as error:
            return error.errno or -1
    return 0


def _identity() -> dict[str, Any]:
    lines = [line for line in _read("/proc/self/status").splitlines() if ":" in line]
    status = {"NoNewPrivs": "0"} | dict(line.split(":", 1) for line in lines)
    return {
        "uid": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
        "no_new_privs": status["NoNewPrivs"].strip() == "1",
        "seccomp": status.get("Seccomp", "0").strip() == "2",
    }


def _is_allowed(name: str) -> bool:
    column = 0 if platform.machine() == "x86_64" else 1
    ctypes.set_errno(0)
    result = _LIBC.syscall(_FORBIDDEN_CALLS[name][column], *_CALL_ARGUMENTS)
    return result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)


def _opens(family: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        # By libc: socket.socket() looks up more than the kernel is asked.
        fd = _LIBC.socket(family, kind, 0)
        if fd >= 0:
            os.close(fd)
            return True
    return False


def _other_devices() -> list[str]:
    devices: list[str] = []
    for folder, _, names in os.walk("/dev"):
        for path in (os.path.join(folder, name) for name in names):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            found = os.fstat(fd)
            os.close(fd)
            is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
            if is_device and found.st_rdev not in _HARMLESS_DEVICES:
                devices.append(path)
    return sorted(devices)


def _fill_scratch() -> int:
    try:
        with open("/work/fill", "wb") as file:
            for _ in range(_SCRATCH_MIB):
                file.write(bytes(1 << 20))
    except OSError as error:
        return error.errno or -1
    return 0
