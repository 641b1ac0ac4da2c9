"""Build the isolation of one sandbox around a fork of the shim.

The child is PID 1 of new namespaces (namespaces(7)) at once. It waits for its control group and its ids, then
mounts its root, then waits for limits and context.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn, Protocol

import msgspec

from ...sandbox_image import environment, linux, protocol
from ...sandbox_image.environment import GUEST_ID
from ...sandbox_image.guest.init import CHANNEL_FD, CONTEXT_FD, REPL_FD, allocate_shared
from ...sandbox_image.guest.procfs import read, write
from . import landlock, mounts, rlimits, seccomp, socket_memory
from . import syscalls as sc
from .cgroups import Cgroup, CgroupBase
from .package_links import PACKAGES
from .setup_errors import SetupError, SetupStep, is_setup_step, setup_step

_SETUP_FD = 6

# Where the engine is root, each sandbox gets a host uid from here. Users and containers have lower ones. An
# ordinary user's sandboxes get subordinate ids, if there are any.
_HOST_IDS = range(0x6000_0000, 0x7000_0000)

# The cgroup namespace follows later: its root is the group of the process that creates it
# (cgroup_namespaces(7)).
_NAMESPACES = (
    sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
)


class Run(Protocol):
    """The entry point of a guest."""

    def __call__(self, setup_fd: int, shared: mmap.mmap, *, is_stopped: bool) -> NoReturn:
        """Run the guest.

        Args:
            setup_fd: closed when nothing more can fail.
            shared: memory that was allocated before the filter of system calls.
            is_stopped: whether the shim stops the guest's processes now and then.
        """
        ...


@dataclass(frozen=True, slots=True)
class Template:
    """What the zygote prepares once for all its sandboxes."""

    seccomp: bytes | None
    cgroups: CgroupBase | None
    folders: tuple[str, ...]


class IsolatedProcess:
    """PID 1 of a sandbox, as its shim sees it.

    Attributes:
        uid: its user and group id on the host.
        cgroup: its control group, if any.
        socket_list: for ``SocketMemory``, once it has its limits; None with a control group, or if the kernel
            cannot list sockets.
    """

    def __init__(
        self,
        pid: int,
        setup: socket.socket,
        *,
        init_stream: socket.socket,
        repl_stream: socket.socket,
        uid: int,
    ) -> None:
        self.pid = pid
        self.init_stream = init_stream
        self.repl_stream = repl_stream
        self.uid = uid
        self.cgroup: Cgroup | None = None
        self.socket_list: socket.socket | None = None
        self._setup = setup

    @property
    def setup_fd(self) -> int:
        """The descriptor that is readable after the setup."""
        return self._setup.fileno()

    def apply_limits(self, limits: protocol.ResourceLimits, context: int) -> None:
        """Send limits and context; the guest then runs.

        Raises:
            SetupError: a limit cannot be applied, or the process has ended.
        """
        if self.cgroup is not None:
            with setup_step("cgroup"):
                self.cgroup.limit(limits)
        try:
            if self.cgroup is None:
                self._receive_socket_list()
            socket.send_fds(self._setup, [protocol.encode(protocol.ApplyLimits(limits))], [context])
        except BrokenPipeError as error:
            # It ended while it was built. The error that it reported can still be read.
            raise self.setup_error() or SetupError("namespaces", errno.EPIPE) from error
        except OSError as error:
            raise SetupError("namespaces", error.errno or 0) from error

    def _receive_socket_list(self) -> None:
        packet, descriptors, _, _ = socket.recv_fds(self._setup, protocol.SETUP_PACKET_BYTES, 1)
        if not packet or isinstance(protocol.decode_from_isolated(packet), protocol.SetupFailed):
            raise _decode_error(packet)
        if descriptors:
            self.socket_list = socket.socket(fileno=descriptors[0])

    def setup_error(self) -> SetupError | None:
        """Return the error of the setup, or None; once, when ``setup_fd`` is readable."""
        try:
            packet = self._setup.recv(protocol.SETUP_PACKET_BYTES)
        except ConnectionResetError:
            # It ended before it read its limits. The kernel reports that first, and then its message.
            packet = self._setup.recv(protocol.SETUP_PACKET_BYTES)
        self._setup.close()
        return _decode_error(packet) if packet else None

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        # All processes of its PID namespace die with it (pid_namespaces(7)).
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.init_stream.close()
        self.repl_stream.close()

    def remove_cgroup(self) -> None:
        """Remove the control group, after ``kill``."""
        if self.cgroup is not None:
            self.cgroup.remove()


def build(template: Template, name: str, run: Run) -> IsolatedProcess:
    """Start a process that runs ``run`` as PID 1 of a sandbox once it has its limits.

    Raises:
        SetupError: a step failed; nothing is left of the process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    init_stream, guest_init = socket.socketpair()
    repl_stream, guest_repl = socket.socketpair()
    uid = _choose_id()
    if uid in _HOST_IDS:
        with setup_step("mounts"):
            mounts.make_devices()
    # As early as possible: each page that was written before is copied again by its next writer.
    pid = _fork_into_namespaces()
    if pid == 0:
        ours.close()
        init_stream.close()
        repl_stream.close()
        _run_child(template, (guest_init.detach(), guest_repl.detach(), theirs.detach()), run)
    for sock in (theirs, guest_init, guest_repl):
        sock.close()
    for sock in (init_stream, repl_stream):
        # Refuse descriptors from the guest (unix(7)). Before Linux 6.16 the shim must close them.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, sc.SO_PASSRIGHTS, 0)
    built = IsolatedProcess(pid, ours, init_stream=init_stream, repl_stream=repl_stream, uid=uid)
    try:
        if template.cgroups is not None:
            with setup_step("cgroup"):
                built.cgroup = template.cgroups.create(name)
                built.cgroup.add(pid)
        with setup_step("id_map"):
            _map_ids(pid, uid)
        with setup_step("namespaces"):
            cgroup = built.cgroup
            placed = protocol.Placed(
                lists_sockets=cgroup is None, is_stopped=cgroup is None or not cgroup.limits_cpus
            )
            ours.send(protocol.encode(placed))
    except BaseException:
        built.kill()
        built.remove_cgroup()
        raise
    return built


def _fork_into_namespaces() -> int:
    try:
        return _fork("namespaces", _NAMESPACES)
    except SetupError as refused:
        if refused.step == "namespaces":
            # If a user namespace alone is refused too, the error names it: another setting allows it.
            if (probe := _fork("user_namespace", sc.CLONE_NEWUSER)) == 0:
                os._exit(0)
            os.waitpid(probe, 0)
        raise


def _fork(step: SetupStep, flags: int) -> int:
    try:
        return sc.fork_into(flags)
    except OSError as error:
        raise SetupError(_fork_or(step, error), error.errno or 0) from error


def _fork_or(step: SetupStep, error: OSError) -> SetupStep:
    # These two mean that there was no room for a process, and may be later (fork(2)).
    return "fork" if error.errno in (errno.EAGAIN, errno.ENOMEM) else step


def _decode_error(packet: bytes) -> SetupError:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        failed = protocol.decode_from_isolated(packet)
        if isinstance(failed, protocol.SetupFailed) and is_setup_step(failed.step):
            return SetupError(failed.step, failed.errno)
    return SetupError("namespaces", errno.EPROTO)


def _map_ids(pid: int, outside: int) -> None:
    # One id is mapped, so that no other user exists inside (user_namespaces(7)).
    for name in ("uid_map", "gid_map"):
        write(f"/proc/{pid}/{name}", f"{GUEST_ID} {outside} 1")


# An id for a sandbox, as the zygote's user namespace counts them. 0 is the user's own: no other is mapped.
def _choose_id() -> int:
    uids, gids = (_mapped_ids(f"/proc/self/{name}") for name in ("uid_map", "gid_map"))
    ids = range(max(uids.start, gids.start), min(uids.stop, gids.stop))
    if len(ids) <= 1:
        return 0
    has_all = _HOST_IDS[0] in ids and _HOST_IDS[-1] in ids
    # Else the upper half: containers of the same user have low ids.
    return random.SystemRandom().choice(_HOST_IDS if has_all else ids[len(ids) // 2 :])


def _mapped_ids(path: str) -> range:
    extents = [line.split() for line in read(path).splitlines()]
    start, _, count = max(extents, key=lambda each: int(each[2]))
    return range(int(start), int(start) + int(count))


def _run_child(template: Template, descriptors: tuple[int, int, int], run: Run) -> NoReturn:
    setup = descriptors[-1]
    try:
        # From its first moment: a stopped process does not see that the shim closed the socket.
        linux.kill_with_parent()
        packet = os.read(setup, protocol.SETUP_PACKET_BYTES)
        placed = protocol.decode_to_isolated(packet) if packet else None
        if not isinstance(placed, protocol.Placed):
            os._exit(1)
        if placed.lists_sockets:
            _send_socket_list(setup)
        with setup_step("namespaces"):
            sc.unshare(sc.CLONE_NEWCGROUP)
        setup = _keep_only(descriptors)
        _enter_root(template)
        shared = allocate_shared()
        _confine(template, setup)
        run(setup, shared, is_stopped=placed.is_stopped)
    except SetupError as error:
        os.write(setup, protocol.encode(protocol.SetupFailed(error.step, error.errno)))
    except OSError as error:
        failed = protocol.SetupFailed(_fork_or("namespaces", error), error.errno or 0)
        os.write(setup, protocol.encode(failed))
    finally:
        os._exit(1)


def _send_socket_list(setup: int) -> None:
    message = protocol.encode(protocol.SocketList())
    with socket.socket(fileno=os.dup(setup)) as sender:
        try:
            # Made here, for it lists the sockets of its namespace. The guest never has it.
            listing = socket_memory.open_socket()
        except OSError:
            sender.send(message)
            return
        with listing:
            socket.send_fds(sender, [message], [listing.fileno()])


def _keep_only(descriptors: tuple[int, int, int]) -> int:
    # First above all the numbers, so that none overwrites another. All other descriptors are closed.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _SETUP_FD + 1) for fd in descriptors]
    for fd, number in zip(high, (CHANNEL_FD, REPL_FD, _SETUP_FD), strict=True):
        os.dup2(fd, number, inheritable=False)
    os.closerange(CONTEXT_FD, REPL_FD)
    os.closerange(_SETUP_FD + 1, 1 << 20)
    return _SETUP_FD


def _enter_root(template: Template) -> None:
    with setup_step("mounts"):
        _become_guest()
        mounts.mount_root(template.folders, has_cgroup=template.cgroups is not None)
    with setup_step("proc"):
        mounts.mount_proc()
    with setup_step("pivot_root"):
        mounts.enter()
    with setup_step("identity"):
        # No controlling terminal, and so no TIOCSTI into the host's (setsid(2), ioctl_tty(2)).
        os.setsid()
        sc.sethostname("sandbox")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.chdir(protocol.WORK)
        os.umask(0o022)
        os.environ.clear()
        os.environ.update(environment.VARIABLES)


def _become_guest() -> None:
    # Before the first mount: files in a file system need an owner that the user namespace maps.
    if read("/proc/self/setgroups").strip() == "allow":
        os.setgroups([])
    os.setresgid(GUEST_ID, GUEST_ID, GUEST_ID)
    os.setresuid(GUEST_ID, GUEST_ID, GUEST_ID)
    # The change of ids undid it.
    linux.kill_with_parent()


def _confine(template: Template, setup: int) -> None:
    # The sandbox was built ahead; here it waits for its user.
    with socket.socket(fileno=os.dup(setup)) as receiver:
        packet, descriptors, _, _ = socket.recv_fds(receiver, protocol.SETUP_PACKET_BYTES, 1)
    if not packet or len(descriptors) != 1:
        os._exit(1)
    order = protocol.decode_to_isolated(packet)
    if not isinstance(order, protocol.ApplyLimits):
        os._exit(1)
    limits = order.limits
    os.dup2(descriptors[0], CONTEXT_FD, inheritable=False)
    os.close(descriptors[0])
    mounts.resize_scratch(limits)
    with setup_step("rlimits"):
        rlimits.apply(limits, has_cgroup=template.cgroups is not None)
    with setup_step("capabilities"):
        linux.set_no_new_privs()
        sc.drop_capabilities()
        # Its /proc/PID, and so its descriptors and memory, are closed to the guest's processes (ptrace(2)).
        linux.set_undumpable()
        # After the last change of ids, which would undo it.
        linux.kill_with_parent()
    if PACKAGES in template.folders:
        with setup_step("packages"):
            _enable_packages(limits)
    with setup_step("landlock"):
        landlock.restrict(read=("/",), write=(protocol.WORK, "/tmp", "/dev", "/proc"))
    if template.seccomp is not None:
        with setup_step("seccomp"):
            # Last: the filter refuses the calls that the steps above need (seccomp(2)).
            seccomp.install(template.seccomp)


def _enable_packages(limits: protocol.ResourceLimits) -> None:
    with os.scandir(PACKAGES) as entries:
        for entry in entries:
            # Not the entry's own methods: they raise for a link that leads in a circle.
            is_folder = os.path.isdir(entry.path)
            needed = os.R_OK | os.X_OK if is_folder else os.R_OK
            # An import would report an unreadable folder as a module that does not exist.
            if (is_folder or os.path.isfile(entry.path)) and not os.access(entry, needed):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    sys.path.append(PACKAGES)
    os.environ |= environment.packages_variables(PACKAGES, limits.cpus, limits.pids)
