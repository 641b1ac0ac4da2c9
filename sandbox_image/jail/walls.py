"""Build the walls of one sandbox around a fork of the shim, and leave init running inside as PID 1.

Two forks: the first child leaves the host's namespaces and waits for its ids to be mapped; its own child
is the first process of the new PID namespace. The first child then exits, and the shim, a subreaper,
becomes the parent of init.
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .. import protocol
from . import syscalls as sc
from .steps import StepFailed, step

CHANNEL_FD = 3
CONTEXT_FD = 4
_SYNC_FD = 5

INSIDE_ID = 65534
"""The uid and gid that a guest sees as its own."""

_OUTSIDE_IDS = range(0x6000_0000, 0x7000_0000)
"""Where the engine is root: the host's uids for sandboxes, one each, far above those of users and containers."""

_NAMESPACES = (
    sc.CLONE_NEWNS
    | sc.CLONE_NEWPID
    | sc.CLONE_NEWNET
    | sc.CLONE_NEWIPC
    | sc.CLONE_NEWUTS
    | sc.CLONE_NEWCGROUP
)
_ENVIRONMENT = {
    "HOME": protocol.WORK,
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "USER": "sandbox",
}


def raise_walls(
    limits: protocol.Limits, channel: int, context: int, run: Callable[[], NoReturn]
) -> tuple[int, int]:
    """Start ``run`` as PID 1 of a new sandbox; it finds its stream and its context at the two ``*_FD``.

    Returns:
        init's pid, and a descriptor on which ``read_failure`` tells how the building ended.

    Raises:
        StepFailed: the sandbox could not be begun. Nothing is left of it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    first = os.fork()
    if first == 0:
        ours.close()
        _first_child(limits, channel, context, theirs.detach(), run)
    theirs.close()
    try:
        _expect(ours, b"unshared")
        with step("id_map"):
            _map_ids(first)
        ours.send(b"mapped")
        return int(_expect(ours, b"pid ")), ours.detach()
    finally:
        os.waitpid(first, 0)


def read_failure(sync: int) -> StepFailed | None:
    """After ``sync`` became readable: None where the walls stand, else the step that failed."""
    text = os.read(sync, 256).decode()
    return _failure(text) if text else None


def _failure(text: str) -> StepFailed:
    _, name, errno = text.split()
    return StepFailed(name, int(errno))  # pyright: ignore[reportArgumentType]


def _expect(sync: socket.socket, prefix: bytes) -> bytes:
    message = sync.recv(256)
    if message.startswith(b"FAILED"):
        raise _failure(message.decode())
    if not message.startswith(prefix):
        raise StepFailed("namespaces", 0)
    return message.removeprefix(prefix)


def _map_ids(pid: int) -> None:
    outside = random.SystemRandom().choice(_OUTSIDE_IDS) if _is_the_hosts_root() else 0
    Path(f"/proc/{pid}/uid_map").write_text(f"{INSIDE_ID} {outside} 1")
    Path(f"/proc/{pid}/gid_map").write_text(f"{INSIDE_ID} {outside} 1")


def _is_the_hosts_root() -> bool:
    """Whether this process may map any id, not only the one that its user namespace was given."""
    return os.geteuid() == 0 and int(Path("/proc/self/uid_map").read_text().split()[2]) > 1


def _first_child(
    limits: protocol.Limits, channel: int, context: int, sync: int, run: Callable[[], NoReturn]
) -> NoReturn:
    try:
        with step("user_namespace"):
            sc.unshare(sc.CLONE_NEWUSER)
        with step("namespaces"):
            sc.unshare(_NAMESPACES)
        os.write(sync, b"unshared")
        if os.read(sync, 16) != b"mapped":
            os._exit(1)
        child = os.fork()
        if child:
            os.write(sync, b"pid %d" % child)
            os._exit(0)
        sync = _arrange_descriptors(channel, context, sync)
        _build(limits)
        os.close(sync)
        run()
    except StepFailed as failure:
        os.write(sync, f"FAILED {failure.step} {failure.errno}".encode())
    finally:
        os._exit(1)


def _arrange_descriptors(channel: int, context: int, sync: int) -> int:
    """Keep these three, at their numbers, and nothing else: first out of the way, then into place."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (channel, context, sync)]
    for fd, number in zip(high, (CHANNEL_FD, CONTEXT_FD, _SYNC_FD), strict=True):
        os.dup2(fd, number, inheritable=False)
    os.closerange(_SYNC_FD + 1, 1 << 20)
    return _SYNC_FD


def _build(limits: protocol.Limits) -> None:
    with step("mounts"):
        _mount(limits)
    with step("proc"):
        sc.mount("proc", "proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
    with step("pivot_root"):
        sc.pivot_root_here()
    with step("identity"):
        os.setsid()
        sc.sethostname("sandbox")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.chdir(protocol.WORK)
        os.umask(0o022)
        os.environ.clear()
        os.environ.update(_ENVIRONMENT)
    with step("capabilities"):
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.drop_capabilities()
    with step("rlimits"):
        _set_rlimits(limits)


def _mount(limits: protocol.Limits) -> None:
    # A file system mounted by an id that the user namespace does not map could hold no file.
    if Path("/proc/self/setgroups").read_text().strip() == "allow":
        os.setgroups([])
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount(protocol.ROOT, protocol.ROOT, None, sc.MS_BIND | sc.MS_REC)
    os.chdir(protocol.ROOT)
    options = f"mode=0700,size={limits.scratch_bytes},nr_inodes={limits.scratch_inodes}"
    # One file system under three names, so that its size is the whole of what can be written. It hangs
    # where /proc comes next, which covers it.
    sc.mount("tmpfs", "proc", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    for name, target in (("work", "work"), ("tmp", "tmp"), ("shm", "dev/shm")):
        os.mkdir(f"proc/{name}", 0o700)
        sc.mount(f"proc/{name}", target, None, sc.MS_BIND)


def _set_rlimits(limits: protocol.Limits) -> None:
    wanted = {
        # RLIMIT_AS would count what threads and allocators only reserve; DATA counts what can be written.
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: limits.pids,
    }
    for kind, value in wanted.items():
        _, ceiling = resource.getrlimit(kind)
        held = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (held, held))
