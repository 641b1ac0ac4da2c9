"""A zygote: without threads or secrets, it forks shims for one folder of packages, or for none."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

# For shims and guests: a sandbox then costs forks and no imports.
import cloudpickle  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingTypeStubs]  # for forks

from ...sandbox_image import linux, protocol
from . import isolated_process, seccomp, shim
from .cgroups import CgroupBase

# The watchdog samples processes, and this memory belongs to none. Nor does shared anonymous memory once it is
# unmapped.
_REFUSED_WITHOUT_CGROUP = frozenset({"memfd_create"})

_PACKET_BYTES = 64 << 10
# With an order: the context or a container's stdio, and the shim's end of its stream to the engine.
_DESCRIPTORS = 2
# A unit that is stopped sends these to all its processes. Only this one removes the control groups.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_SWEEP_SECONDS = 2.0
_SWEEP_AGAIN_MS = 20
# Small or often used: each sandbox forks this memory three times. asyncio, with TLS, would add 2.5 MB; a cell
# that imports it waits 30 ms.
_PRELOADED_MODULES = (
    "collections", "concurrent.futures.thread", "copy", "csv", "dataclasses", "datetime", "difflib",
    "encodings.ascii", "functools", "heapq", "io", "itertools", "json", "math", "operator", "pprint",
    "random", "re",
    "statistics", "string", "subprocess", "textwrap", "time", "typing", "unicodedata",
)  # fmt: skip


def main() -> None:
    """Serve the control socket until the engine is gone."""
    # Arguments: the descriptor of the control socket; as JSON, the folders that sandboxes see, or the folder
    # of the containers' contexts, which is removed at the end.
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    linux.set_process_name("supdist-zygote")
    for module in _PRELOADED_MODULES:
        __import__(module)
    folders = json.loads(sys.argv[2])
    template = None if isinstance(folders, str) else _template(tuple(folders))
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, _ignore)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A child's garbage collector then does not touch, and so not copy, the pages that it shares.
    gc.collect()
    gc.freeze()
    Zygote(control, template, folders if template is None else None).serve()


def _template(folders: tuple[str, ...]) -> isolated_process.Template:
    cgroups = CgroupBase.find()
    if cgroups is not None:
        cgroups.sweep_orphans()
    return isolated_process.Template(_compile_filter(has_cgroup=cgroups is not None), cgroups, folders)


def _compile_filter(*, has_cgroup: bool) -> bytes | None:
    # Without libseccomp there is none. The engine checks what the guest measured.
    try:
        refused = frozenset[str]() if has_cgroup else _REFUSED_WITHOUT_CGROUP
        return seccomp.compile_filter(refused=refused, shared_anonymous=has_cgroup)
    except seccomp.SeccompUnavailable:
        return None


class Zygote:
    """Forks shims, and keeps one with a sandbox built ahead."""

    def __init__(
        self,
        control: socket.socket,
        template: isolated_process.Template | None,
        contexts: str | None,
    ) -> None:
        self._control = control
        self._contexts = contexts
        self._template = template
        self._cgroups = template.cgroups if template is not None else None
        self._reaped, self._signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        self._sessions: dict[int, bytes] = {}
        self._spare: tuple[int, socket.socket] | None = None
        self._to_sweep: set[str] = set()

    def serve(self) -> None:
        """Take orders until the engine is gone, then kill all shims."""
        self._control.send(protocol.encode(protocol.ZygoteReady(protocol.VERSION)))
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._reaped, select.POLLIN)
        # A child of the engine may hold the control socket open. A pidfd reports the engine's own end.
        engine = os.pidfd_open(os.getppid())
        poller.register(engine, select.POLLIN)
        self._build_ahead()
        while True:
            ready = {fd for fd, _ in poller.poll(_SWEEP_AGAIN_MS if self._to_sweep else None)}
            self._sweep()
            if self._reaped in ready:
                with contextlib.suppress(BlockingIOError):
                    if set(os.read(self._reaped, 4096)) & set(_STOP_SIGNALS):
                        self._exit()
                self._report_deaths()
            if engine in ready:
                self._exit()
            if self._control.fileno() in ready:
                received = _receive(self._control)
                if received is None:
                    self._exit()
                order, descriptors = received
                if isinstance(order, protocol.Abandon):
                    self._kill(pid for pid, session in self._sessions.items() if session == order.session)
                else:
                    self._spawn(order, descriptors)

    def _spawn(self, order: protocol.Spawn | protocol.Attach, descriptors: list[int]) -> None:
        # Fewer arrive if this process has no room for them (unix(7)).
        if len(descriptors) != _DESCRIPTORS:
            _close_all(descriptors)
            self._send(protocol.NotForked(order.session, errno.EMFILE))
            return
        try:
            pid, orders = self._spare or self._fork(descriptors)
        except (OSError, MemoryError) as error:
            code = error.errno or 0 if isinstance(error, OSError) else errno.ENOMEM
            self._send(protocol.NotForked(order.session, code))
        else:
            self._spare = None
            self._sessions[pid] = order.session
            with orders:
                try:
                    socket.send_fds(orders, [protocol.encode(order)], descriptors)
                except OSError:
                    # It is dead or must be. Its exit is reported when it is reaped.
                    os.kill(pid, signal.SIGKILL)
        _close_all(descriptors)
        self._build_ahead()

    def _build_ahead(self) -> None:
        # The next order tries again and reports the error.
        with contextlib.suppress(OSError, MemoryError):
            self._spare = self._spare or self._fork(())

    def _fork(self, descriptors: Iterable[int]) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_STOP_SIGNALS):
                signal.signal(number, signal.SIG_DFL)
            _close_all((self._reaped, self._signalled, *descriptors))
            for unused in (ours, self._control, *([self._spare[1]] if self._spare else [])):
                unused.close()
            shim.main(theirs, self._template, parent)
        theirs.close()
        return pid, ours

    def _report_deaths(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._spare is not None and self._spare[0] == pid:
                self._spare[1].close()
                # The next order forks its own.
                self._spare = None
            self._to_sweep.add(f"{os.getpid()}-{pid}")
            session = self._sessions.pop(pid, None)
            if session is not None:
                self._send(protocol.ShimExit(session, status))

    def _send(self, message: protocol.FromZygote) -> None:
        try:
            self._control.send(protocol.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self._exit()

    def _sweep(self) -> None:
        # It may take a few tries: a guest ends a moment after its shim.
        cgroups = self._cgroups
        self._to_sweep = {name for name in self._to_sweep if cgroups is not None and cgroups.sweep(name)}

    def _kill(self, pids: Iterable[int]) -> None:
        for pid in list(pids):
            # Not reaped yet, so the pid is still its own.
            os.kill(pid, signal.SIGKILL)

    def _exit(self) -> NoReturn:
        # A shim's guest dies with it (PR_SET_PDEATHSIG).
        self._kill([*self._sessions, *([self._spare[0]] if self._spare else [])])
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        if self._cgroups is not None:
            deadline = time.monotonic() + _SWEEP_SECONDS
            while self._cgroups.sweep_all(os.getpid()) and time.monotonic() < deadline:
                # A killed guest is dead a moment before its group is empty.
                time.sleep(0.01)
        if self._contexts is not None:
            shutil.rmtree(self._contexts, ignore_errors=True)
        os._exit(0)


def _receive(control: socket.socket) -> tuple[protocol.ToZygote, list[int]] | None:
    descriptors = array.array("i")
    try:
        packet, ancillary, _, _ = control.recvmsg(
            _PACKET_BYTES, socket.CMSG_SPACE(_DESCRIPTORS * descriptors.itemsize)
        )
    except ConnectionResetError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not packet:
        return None
    return protocol.decode_to_zygote(packet), list(descriptors)


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _ignore(number: int, frame: object) -> None:
    """Do nothing. Only a signal with a handler reaches the wake-up descriptor."""
