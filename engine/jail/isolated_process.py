"""Build the walls of one sandbox around a fork of the shim, and leave init running inside as PID 1.

One fork: the child is in new namespaces, and PID 1 of its own, from its first moment; it waits there until it has a
control group and its ids are mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import random
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from ...sandbox_image import protocol
from ...sandbox_image.guest.init import CHANNEL_FD, CONTEXT_FD, REPL_FD
from ...sandbox_image.guest.procfs import read, write
from . import landlock, rootfs, seccomp
from . import syscalls as sc
from .cgroups import Cgroup, CgroupBase
from .setup_errors import SetupError, SetupStep, setup_step

_SYNC_FD = 6

_PACKET_BYTES = 4096

INSIDE_ID = 65534
"""The uid and gid that a guest sees as its own."""

_OUTSIDE_IDS = range(0x6000_0000, 0x7000_0000)
"""Where the engine is root: the host's uids for sandboxes, one each, far above those of users and containers."""

# What tells of the host or its kernel; most of it is closed to a guest anyway.
_HIDDEN_IN_PROC = (
    "config.gz", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "keys", "key-users", "kmsg", "latency_stats", "modules",
    "pagetypeinfo", "sched_debug", "slabinfo", "sysrq-trigger", "timer_list", "vmallocinfo",
)  # fmt: skip

# The one that is left is of control groups: its root is the group in which a process is that asks for it.
_NAMESPACES = (
    sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
)
_ENVIRONMENT = {
    "HOME": protocol.WORK,
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",  # there is no screen to ask for
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "USER": "sandbox",
}


@dataclass(frozen=True, slots=True)
class Template:
    """What the zygote found and made ready once, for the walls of all its sandboxes."""

    seccomp: bytes | None
    cgroups: CgroupBase | None
    folders: tuple[str, ...]


class IsolatedProcess:
    """A sandbox in the making: built without limits, so that it can wait for its user, then given them.

    Attributes:
        init_stream, repl_stream: the streams of its init and of its repl.
        uid: its user id (and group id) outside.
        cgroup: its group, once it has one.
    """

    def __init__(
        self,
        pid: int,
        sync: socket.socket,
        *,
        init_stream: socket.socket,
        repl_stream: socket.socket,
        uid: int,
    ) -> None:
        self.pid = pid
        self.init_stream = init_stream
        self.repl_stream = repl_stream
        self.cgroup: Cgroup | None = None
        self.uid = uid
        self._sync = sync

    @property
    def setup_fd(self) -> int:
        """The descriptor that becomes readable when ``setup_error`` can tell how the setup ended."""
        return self._sync.fileno()

    def apply_limits(self, limits: protocol.Limits, context: int) -> None:
        """Apply the limits and let the guest run, with a descriptor of its context.

        Raises:
            SetupError: a limit cannot be applied.
        """
        if self.cgroup is not None:
            with setup_step("cgroup"):
                self.cgroup.limit(limits)
        try:
            socket.send_fds(self._sync, [protocol.encode(limits)], [context])
        except BrokenPipeError as error:  # it has ended, while it was built; what it said of that lies there
            raise self.setup_error() or SetupError("namespaces", errno.EPIPE) from error
        except OSError as error:
            raise SetupError("namespaces", error.errno or 0) from error

    def setup_error(self) -> SetupError | None:
        """After ``setup_fd`` became readable: None where the walls stand, else the step that failed. Asked once."""
        try:
            text = self._sync.recv(256).decode()
        except ConnectionResetError:  # it has ended without reading its limits; what it said comes after that
            text = self._sync.recv(256).decode()
        self._sync.close()
        return _failure(text) if text else None

    def kill(self) -> None:
        """Kill the PID namespace, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.init_stream.close()
        self.repl_stream.close()

    def remove_cgroup(self) -> None:
        """Remove what is left of it when it has been killed and nobody asks any more what it used."""
        if self.cgroup is not None:
            self.cgroup.remove()


def build(template: Template, name: str, run: Callable[[int], NoReturn]) -> IsolatedProcess:
    """Build walls and leave a process behind them that becomes PID 1 with ``run`` once it has its limits.

    ``run`` is given a descriptor, which it closes when it has all that the kernel could have refused it. It finds its streams
    and its context at ``CHANNEL_FD``, ``REPL_FD`` and ``CONTEXT_FD``.

    Raises:
        SetupError: a wall cannot be built. Nothing is left of it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, guests_stream = socket.socketpair()
    repl, guests_repl = socket.socketpair()
    owner = 0  # what an ordinary user is in the view
    if _is_the_hosts_root():
        owner = random.SystemRandom().choice(_OUTSIDE_IDS)
        with setup_step("mounts"):
            _make_devices()
    # As early as can be: of every page that is written before, there is a copy to be made again by whoever writes it next.
    pid = _fork_inside()
    if pid == 0:
        ours.close()
        stream.close()
        repl.close()
        _inside(template, (guests_stream.detach(), guests_repl.detach(), theirs.detach()), run)
    for sock in (theirs, guests_stream, guests_repl):
        sock.close()
    for sock in (stream, repl):
        # Before Linux 6.16 they cannot refuse descriptors, which are closed by whoever reads then.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, sc.SO_PASSRIGHTS, 0)
    built = IsolatedProcess(pid, ours, init_stream=stream, repl_stream=repl, uid=owner)
    try:
        if template.cgroups is not None:
            with setup_step("cgroup"):
                built.cgroup = template.cgroups.create(name)
                built.cgroup.add(pid)
        with setup_step("id_map"):
            _map_ids(pid, owner)
        with setup_step("namespaces"):
            ours.send(b"placed")
    except BaseException:
        built.kill()
        built.remove_cgroup()
        raise
    return built


def _fork_inside() -> int:
    """fork(2) into new namespaces; 0 in the child.

    Raises:
        SetupError: the kernel refuses them, and which.
    """
    try:
        return _fork("namespaces", _NAMESPACES)
    except SetupError as refused:
        if refused.step == "namespaces":
            if (probe := _fork("user_namespace", sc.CLONE_NEWUSER)) == 0:
                os._exit(0)
            os.waitpid(probe, 0)
        raise


def _fork(name: SetupStep, flags: int) -> int:
    try:
        return sc.fork_into(flags)
    except OSError as error:
        raise SetupError(_fork_or(name, error), error.errno or 0) from error


def _fork_or(name: SetupStep, error: OSError) -> SetupStep:
    """Room for a process is what lacks where the kernel says that it may be there another time."""
    return "fork" if error.errno in (errno.EAGAIN, errno.ENOMEM) else name


def _failure(text: str) -> SetupError:
    _, name, errno = text.split()
    return SetupError(name, int(errno))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # `_inside` sends a SetupStep


def _map_ids(pid: int, outside: int) -> None:
    """Map the id that it has inside to one outside."""
    for name in ("uid_map", "gid_map"):
        write(f"/proc/{pid}/{name}", f"{INSIDE_ID} {outside} 1")


def _is_the_hosts_root() -> bool:
    """Whether this process may map any id, not only the one that its user namespace was given."""
    return os.geteuid() == 0 and int(read("/proc/self/uid_map").split()[2]) > 1


def _inside(
    template: Template, descriptors: tuple[int, int, int], run: Callable[[int], NoReturn]
) -> NoReturn:
    sync = descriptors[-1]
    try:
        if os.read(sync, 16) != b"placed":
            os._exit(1)
        with setup_step("namespaces"):
            sc.unshare(sc.CLONE_NEWCGROUP)
        sync = _arrange_descriptors(descriptors)
        _build(template.folders)
        _apply_limits(template, sync)
        run(sync)
    except SetupError as failure:
        os.write(sync, f"FAILED {failure.step} {failure.errno}".encode())
    except OSError as error:
        os.write(sync, f"FAILED {_fork_or('namespaces', error)} {error.errno or 0}".encode())
    finally:
        os._exit(1)


def _make_devices() -> None:
    """Nodes of its own, which only the host's root can make: a lock on one is not seen through another.

    They are made in mounts that are the shim's, of which the guest's begin as a copy. Everybody else, and a root that
    may not make any, shares the host's.
    """
    numbers = {name: os.stat(f"/dev/{name}").st_rdev for name in rootfs.DEVICES}
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount("tmpfs", "/dev", "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "mode=0755")
    try:
        for name, number in numbers.items():
            os.mknod(f"/dev/{name}", stat.S_IFCHR, number)
            os.chmod(f"/dev/{name}", 0o666)  # noqa: S103 - as every /dev has them
    except OSError as error:
        sc.umount("/dev")
        if not isinstance(error, PermissionError):
            raise


def _apply_limits(template: Template, sync: int) -> None:
    """Wait for a user; then what depends on the limits, and, last of all, what forbids the rest."""
    with socket.socket(fileno=os.dup(sync)) as receiver:
        packet, descriptors, _, _ = socket.recv_fds(receiver, _PACKET_BYTES, 1)
    if not packet or len(descriptors) != 1:
        os._exit(1)
    limits = msgspec.msgpack.decode(packet, type=protocol.Limits)
    os.dup2(descriptors[0], CONTEXT_FD, inheritable=False)
    os.close(descriptors[0])
    with setup_step("mounts"):
        size = f"size={limits.scratch_bytes},nr_inodes={limits.scratch_inodes}"
        sc.mount("tmpfs", protocol.WORK, None, sc.MS_REMOUNT | sc.MS_NOSUID | sc.MS_NODEV, size)
    with setup_step("rlimits"):
        _set_rlimits(limits, has_cgroup=template.cgroups is not None)
    with setup_step("capabilities"):
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.drop_capabilities()
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        # With the shim, its parent, it ends. A change of its ids would undo this (prctl(2)).
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if rootfs.PACKAGES in template.folders:
        with setup_step("packages"):
            _offer_packages(limits)
    with setup_step("landlock"):
        landlock.restrict(read=("/",), write=(protocol.WORK, "/tmp", "/dev", "/proc"))
    if template.seccomp is not None:
        with setup_step("seccomp"):
            seccomp.install(template.seccomp)


def _offer_packages(limits: protocol.Limits) -> None:
    """Let this interpreter, and those that it starts, import the packages.

    Raises:
        PermissionError: the sandbox's own user, whom only the rights of all others help where the engine is root,
            cannot read the folder or what lies directly in it. Import would say that there is no such module.
    """
    with os.scandir(rootfs.PACKAGES) as entries:
        for entry in entries:
            needed = os.R_OK | os.X_OK if entry.is_dir() else os.R_OK
            if (entry.is_dir() or entry.is_file()) and not os.access(entry, needed):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    sys.path.append(rootfs.PACKAGES)
    os.environ["PYTHONPATH"] = rootfs.PACKAGES
    # By default BLAS starts a thread for each of the host's processors: more than `cpus` could run, each a part of `pids`.
    threads = max(1, min(math.ceil(limits.cpus), limits.pids // 4))
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))


def _arrange_descriptors(descriptors: tuple[int, int, int]) -> int:
    """Keep these three, at their numbers, and nothing else: first out of the way, then into place."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _SYNC_FD + 1) for fd in descriptors]
    for fd, number in zip(high, (CHANNEL_FD, REPL_FD, _SYNC_FD), strict=True):
        os.dup2(fd, number, inheritable=False)
    os.closerange(CONTEXT_FD, REPL_FD)
    os.closerange(_SYNC_FD + 1, 1 << 20)
    return _SYNC_FD


def _build(folders: tuple[str, ...]) -> None:
    with setup_step("mounts"):
        _mount(folders)
    with setup_step("proc"):
        # Processes that the guest may not look into, which is its init, do not exist for it.
        sc.mount("proc", "proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, "hidepid=2")
        for name in _HIDDEN_IN_PROC:
            if os.path.exists(f"proc/{name}"):
                sc.mount("/dev/null", f"proc/{name}", None, sc.MS_BIND)
    with setup_step("pivot_root"):
        sc.pivot_root_here()
    with setup_step("identity"):
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


def _mount(folders: tuple[str, ...]) -> None:
    # A file system mounted by an id that the user namespace does not map could hold no file.
    if read("/proc/self/setgroups").strip() == "allow":
        os.setgroups([])
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _lay(rootfs.TEMPLATE, protocol.ROOT)
    for path in folders:
        _lay(rootfs.LOWER + path, protocol.ROOT + path)
    os.chdir(protocol.ROOT)
    packages = f".{os.path.dirname(os.__file__)}/site-packages"
    if os.path.isdir(packages):  # the base interpreter's own, with the host's paths in its records
        sc.mount(rootfs.EMPTY, packages, None, sc.MS_BIND)
        sc.protect(packages, sc.ATTR_RDONLY)
    for name in rootfs.DEVICES:
        sc.mount(f"/dev/{name}", f"dev/{name}", None, sc.MS_BIND)
    # One file system under three names, so that its size is the whole of what can be written. It hangs
    # where /proc comes next, which covers it.
    sc.mount("tmpfs", "proc", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0700")
    for name, target in (("work", "work"), ("tmp", "tmp"), ("shm", "dev/shm")):
        os.mkdir(f"proc/{name}", 0o700)
        sc.mount(f"proc/{name}", target, None, sc.MS_BIND)


def _lay(source: str, target: str) -> None:
    """Show a folder of the view, read-only, as an overlay of its own: same pages, but other inodes than the host's.

    So a lock that one sandbox takes on a library is seen by no other, a socket that lies in a host's folder
    cannot be connected to, and mountinfo names no path of the host. Where the kernel or the folder's file system
    refuses overlays it is a bind; ``doctor`` tells which it was.
    """
    try:
        flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
        sc.mount("overlay", target, "overlay", flags, f"lowerdir={source}:{rootfs.EMPTY}")
    except OSError:
        sc.mount(source, target, None, sc.MS_BIND | sc.MS_REC)
        sc.protect(target, sc.ATTR_RDONLY | sc.ATTR_NOSUID | sc.ATTR_NODEV)


def _set_rlimits(limits: protocol.Limits, *, has_cgroup: bool) -> None:
    wanted = {
        # RLIMIT_AS would count what threads and allocators only reserve; DATA counts what can be written.
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        # The control group's count comes first, so that it can tell that it was reached.
        resource.RLIMIT_NPROC: limits.pids + (64 if has_cgroup else 1),
    }
    for kind, value in wanted.items():
        _, ceiling = resource.getrlimit(kind)
        held = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (held, held))
    # Only the soft limit: init makes it the guest's hard one, and stays above it itself. Descriptors on their way through
    # sockets are counted by user, against the limit of whoever sends one more: so the shim's must be well above guests'.
    _, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits.open_files, ceiling // 2), ceiling))
