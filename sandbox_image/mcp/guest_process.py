"""The asyncio driver of a ``GuestSession``: a guest as a child process."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .. import environment, protocol
from ..file_transfer import FileTransfer
from ..guest_session import Backlog, CellCollector, GuestSession, Measured, Send, finish, verdict_on_death
from ..protocol import (
    NOT_MEASURED,
    Call,
    CallError,
    CellEnd,
    Display,
    FileCode,
    FileData,
    FileList,
    Final,
    FromShim,
    Outcome,
    Output,
    Ready,
    ReplExit,
    SessionLimits,
    ToShim,
    Violation,
)
from . import processes
from .session import FILE_PROBLEMS, Cell, FileRefused, SessionError, SessionLost

_START_SECONDS = 30.0
_KILL_SECONDS = 10.0
_READ_BYTES = 1 << 18

_MEMORY_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


class GuestProcess:
    """One interpreter. Create it with ``start``, then call ``wait_ready``.

    Attributes:
        lost: why it is gone; None while it runs.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        limits: SessionLimits,
        oom_kills: int,
    ) -> None:
        self._process = process
        self._reader, self._writer = streams
        self._limits = limits
        self._oom_kills = oom_kills
        self._session = GuestSession(limits, has_two_streams=False)
        self._loop = asyncio.get_running_loop()
        self._last_cell = 0
        self._collector = CellCollector(limits.result_bytes)
        self._result: asyncio.Future[Cell] | None = None
        self.files = FileTransfer(limits, self._handle, self.check_running, _refusal)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.lost: str | None = None

    @classmethod
    async def start(cls, folder: Path, limits: SessionLimits) -> GuestProcess:
        """Start the process in a folder.

        Raises:
            SessionError: it does not start.
        """
        ours, theirs = socket.socketpair()
        oom_kills = _oom_kills()
        try:
            with theirs:
                process = _spawn(theirs, folder)
        except OSError as error:
            ours.close()
            raise SessionError(f"the Python process cannot be started: {error}") from error
        guest = cls(process, await asyncio.open_connection(sock=ours), limits, oom_kills)
        guest._handle(protocol.Start.of(limits))
        guest._handle(protocol.Load("text", "frame", b""))
        guest._task = guest._loop.create_task(guest._run())
        return guest

    async def wait_ready(self) -> None:
        """Wait until it takes cells.

        Raises:
            SessionError: it died, or did not start in time.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise SessionError(f"the Python process did not start within {_START_SECONDS:g} s") from None

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - the session keeps it
        """Run a cell. When cancelled, interrupt it and wait for its end."""
        self._last_cell += 1
        number = self._last_cell
        self._collector = CellCollector(self._limits.result_bytes)
        result = self._result = self._loop.create_future()
        self._handle(protocol.Execute(number, code, timeout))
        # Shielded: the cell must end before the next one starts.
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            self._handle(protocol.Interrupt(number))
            await asyncio.wait([result])
            raise

    def check_running(self) -> None:
        """Raise ``SessionLost`` if it has ended."""
        if self.lost is not None:
            raise SessionLost(f"the Python process is gone ({self.lost})")

    async def end(self, why: str) -> None:
        """Kill it and all its processes."""
        self._session.end(Outcome.KILLED, why)
        self._check_end()
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        reading = self._loop.create_task(self._read())
        await self._ended.wait()
        # Closed first, so that nothing of the dying guest is processed.
        reading.cancel()
        self._writer.transport.abort()
        detail = ""
        try:
            await processes.end_all(_KILL_SECONDS)
        except TimeoutError:
            detail = "; some of its processes could not be killed"
        # It was reaped already; now Popen knows.
        self._process.poll()
        self._report_end(detail)

    def _report_end(self, more: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._session.ending is not None
        self.lost = self._session.ending.detail + more
        for send in self._session.end_cell(time.monotonic(), NOT_MEASURED):
            self._receive(send.message)
        lost = SessionLost(f"the Python process is gone ({self.lost})")
        waiting: list[tuple[asyncio.Future[Any] | None, SessionError]] = [
            (self._ready, SessionError(f"the Python process did not start: {self.lost}")),
            (self._result, lost),
        ]
        for future, error in waiting:
            if future is not None and not future.done():
                future.set_exception(error)
                # Retrieved here too: after a cancelled call no other code does.
                future.exception()
        self.files.fail(lost)

    # Reading and writing

    async def _read(self) -> None:
        frames = protocol.FrameBuffer(self._limits.guest_frame_bytes)
        try:
            while data := await self._reader.read(_READ_BYTES):
                self._session.from_guest("init", frames.feed(data))
                # Once for pieces of a frame, too: they count against the rate.
                await self._wait_until_readable()
                while self._session.has_frames:
                    self._process_frame()
                    await self._wait_until_readable()
                # Backpressure: a guest that does not read is not read.
                await self._writer.drain()
        except Violation as error:
            self._session.end_with_error(error)
        except ConnectionError:
            pass
        finally:
            # After any error, too: the session would never end otherwise.
            self._session.closed("init")
            self._check_end()

    async def _wait_until_readable(self) -> None:
        # At least once, so that timers and other clients run: one read may hold thousands of frames.
        await asyncio.sleep(0)
        while not self._session.may_process(now := time.monotonic(), self._backlog()):
            await self._writer.drain()
            resume = self._session.resume_at
            await asyncio.sleep(max(0.0, (resume or now) - now))

    def _backlog(self) -> Backlog:
        return Backlog(guest_bytes=self._writer.transport.get_write_buffer_size())

    def _process_frame(self) -> None:
        if not self._session.has_frames:
            return
        now = time.monotonic()
        sends = self._session.process_frame(now)
        if self._session.unmeasured is not None:
            sends += self._session.measured(Measured(exceeded=self._exceeded()), now)
        self._send(sends)

    def _exceeded(self) -> tuple[Outcome, str] | None:
        last = self._session.unmeasured
        # Any process of the group may have been killed for memory. That explains only deaths by SIGKILL.
        was_killed = isinstance(last, ReplExit) and verdict_on_death(last)[0] is Outcome.KILLED
        if was_killed and _oom_kills() > self._oom_kills:
            return Outcome.OOM, "the kernel killed it: out of memory"
        return None

    def _handle(self, message: ToShim) -> None:
        self._send(self._session.from_engine(message, time.monotonic()))

    def _send(self, sends: list[Send]) -> None:
        for send in sends:
            if send.to == "engine":
                self._receive(send.message)
            else:
                self._writer.write(protocol.frame(send.encoded()))
        self._set_timer()
        self._check_end()

    def _receive(self, message: FromShim | protocol.ToGuest) -> None:
        match message:
            case Ready():
                self._ready.set_result(None)
            case Output() | Display() | Final():
                self._collector.add(message)
            case Call():
                # There is no worker here.
                refused = CallError("unavailable", "there is no worker here")
                self._handle(protocol.Reply(message.call, [refused] * len(message.prompts)))
            case FileData() | FileList():
                self.files.receive(message)
            case CellEnd():
                self._finish_cell(message)
            case _:
                pass

    def _finish_cell(self, end: CellEnd) -> None:
        collector, result = self._collector, self._result
        self._result = None
        if result is None or result.done():
            return
        detail = self.lost if end.state_lost and self.lost else end.detail
        collected = finish(collector, end.error)
        result.set_result(
            Cell(
                outcome=Outcome(end.outcome),
                stdout=collected.stdout,
                stderr=collected.stderr,
                display=collected.displays,
                error=end.error,
                lost=end.state_lost,
                detail=detail,
            )
        )

    # Clocks

    def _set_timer(self) -> None:
        cell = self._session.cell
        deadline = None if cell is None else cell.deadline()
        if self._timer is not None:
            if self._timer.when() == deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._send(self._session.tick(time.monotonic()))

    def _check_end(self) -> None:
        if self._session.ending is not None:
            self._ended.set()


def _spawn(stream: socket.socket, folder: Path) -> subprocess.Popen[bytes]:
    # The environment of the server may hold keys: nothing of it is passed on.
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "supdist.sandbox_image.guest"],
        stdin=stream.fileno(),
        stdout=stream.fileno(),
        cwd=folder,
        env={**environment.VARIABLES, "HOME": str(folder)},
        umask=0o022,
        start_new_session=True,
    )


def _refusal(code: FileCode, path: str, _limit: int) -> FileRefused:
    return FileRefused(f"{path!r}: {FILE_PROBLEMS[code]}")


def _oom_kills() -> int:
    # For cgroup v2 and v1 (memory.events in cgroup-v2.rst). Without them a death counts as a kill.
    for path in _MEMORY_EVENTS:
        try:
            found = re.search(r"^oom_kill (\d+)$", Path(path).read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
