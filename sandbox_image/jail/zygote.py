"""The zygote: one per engine, single-threaded, no secret, no ZeroMQ context. It forks a shim per sandbox.

It has imported what shim and guest need, so that a sandbox costs forks and not imports. It ends when
the engine's end of the control socket closes, and every shim dies with it (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import select
import signal
import socket
import sys

# Imported for the shims and guests that will be forked: see the module's docstring.
import cloudpickle  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingTypeStubs]

from .. import protocol
from . import shim
from . import syscalls as sc

_PACKET_BYTES = 64 << 10
_GUESTS_USE = (
    "asyncio", "collections", "concurrent.futures", "copy", "csv", "dataclasses", "datetime", "difflib",
    "functools", "heapq", "io", "itertools", "json", "math", "operator", "pprint", "random", "re",
    "statistics", "string", "subprocess", "textwrap", "time", "typing", "unicodedata",
)  # fmt: skip


def main() -> None:
    """Serve the control socket, whose descriptor is the first argument, until the engine is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    sc.set_name("supdist-zygote")
    for module in _GUESTS_USE:
        __import__(module)
    reaped, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _wake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What exists now is never freed in a child: frozen, a child's garbage collector does not touch
    # (and so does not copy) the pages that it shares with its siblings.
    gc.collect()
    gc.freeze()
    control.send(protocol.encode(protocol.ZygoteReady(protocol.VERSION)))
    children: dict[int, bytes] = {}
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(reaped, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if reaped in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(reaped, 4096)
            _report_deaths(control, children)
        if control.fileno() in ready:
            received = _receive(control)
            if received is None:
                os._exit(0)
            order, descriptors = received
            if isinstance(order, protocol.Abandon):
                for pid in [pid for pid, session in children.items() if session == order.session]:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(reaped)
                os.close(wake)
                control.close()
                shim.main(order, descriptors)
            children[pid] = order.session
            for fd in descriptors:
                os.close(fd)


def _receive(control: socket.socket) -> tuple[protocol.ToZygote, list[int]] | None:
    descriptors = array.array("i")
    try:
        packet, ancillary, _, _ = control.recvmsg(_PACKET_BYTES, socket.CMSG_SPACE(4 * descriptors.itemsize))
    except ConnectionResetError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not packet:
        return None
    return protocol.decode_to_zygote(packet), list(descriptors)


def _report_deaths(control: socket.socket, children: dict[int, bytes]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        message = protocol.ShimExit(children.pop(pid, b""), status)
        try:
            control.send(protocol.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _wake(number: int, frame: object) -> None:
    """A handler must exist for the signal to reach the wake-up descriptor."""
