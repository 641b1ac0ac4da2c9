"""A zygote's process and sockets, without an event loop."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .diagnostics import named_signal

# Orders of a burst wait in the socket.
_CONTROL_BUFFER = 4 << 20
_STDERR_BYTES = 2000


class ZygoteProcess:
    """A zygote of this process, and what the engine holds for it. Create it with ``start``.

    Attributes:
        control: the socket for orders. At its end the zygote ends.
        pidfd: readable when the zygote has ended.
        streams: sockets to its shims; ``release`` closes them too.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], pidfd: int, control: socket.socket, stderr: int
    ) -> None:
        self.control = control
        self.pidfd = pidfd
        self.streams: set[socket.socket] = set()
        self._process = process
        self._stderr = stderr
        self._engine = os.getpid()

    @classmethod
    def start(cls, command: Callable[[int], list[str]]) -> ZygoteProcess:
        """Start ``command(control descriptor)``. It writes nothing to disk, so a kill leaves nothing.

        Raises:
            OSError: no descriptor, process or memory is left.
        """
        with ExitStack() as undo:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(control.close)
            with theirs:
                control.setblocking(False)
                control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CONTROL_BUFFER)
                stderr = os.memfd_create("zygote stderr")
                undo.callback(os.close, stderr)
                process = _start(command(theirs.fileno()), theirs, stderr)
            undo.callback(process.wait)
            undo.callback(process.kill)
            # Opened now: at the end there may be no descriptor left.
            pidfd = os.pidfd_open(process.pid)
            undo.pop_all()
        return cls(process, pidfd, control, stderr)

    @property
    def is_ours(self) -> bool:
        """Whether this process started it, and is not a fork of that one."""
        return os.getpid() == self._engine

    @property
    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) or a debugger has stopped it."""
        try:
            # proc_pid_stat(5). The name before the state may hold brackets.
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])

    def failure(self) -> str:
        """Return the error that it wrote to stderr, or how it ended."""
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, _STDERR_BYTES, max(0, size - _STDERR_BYTES)).decode(errors="replace")
        if lines := [line for line in text.splitlines() if line.strip()]:
            return next((line.strip() for line in reversed(lines) if "Error" in line), lines[-1].strip())
        status = self._process.poll()
        if status is None:
            return "it is stopped (SIGSTOP)" if self.is_stopped else "it does not answer"
        return f"it was killed by {named_signal(-status)}" if status < 0 else f"it ended with status {status}"

    def kill(self) -> None:
        """Kill it, and its shims with it."""
        if self.is_ours:
            self._process.kill()

    def is_reaped(self) -> bool:
        """Reap it if it has ended; return whether it has."""
        return not self.is_ours or self._process.poll() is not None

    def reap(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def close_control(self) -> None:
        """Close the control socket."""
        self.control.close()

    def release(self) -> None:
        """Close all descriptors. The zygote then ends, if this process is the one that started it."""
        self.control.close()
        for stream in list(self.streams):
            stream.close()
        self.streams.clear()
        for fd in (self.pidfd, self._stderr):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._stderr = -1
        if not self.is_ours:
            # So that Popen does not miss its end: it is no child of this process.
            self._process.returncode = 0
            return
        if self.is_stopped:
            self.kill()


def _start(command: list[str], control: socket.socket, stderr: int) -> subprocess.Popen[bytes]:
    # Not with asyncio, which needs a child watcher.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[control.fileno()],
        # A Python may find its own library by the second only.
        env={"LANG": "C.UTF-8"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
        cwd="/",
        # A terminal's Ctrl-C is for the engine to handle.
        start_new_session=True,
    )
