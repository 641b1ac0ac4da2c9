"""A session whose guest is a child process: for the image, where the container is the wall.

The child's boundary is no wall. It keeps the server alive whatever becomes of the guest: init and repl speak frames over
a socket, judged as a shim judges them, and everything below the server is killed when the interpreter is replaced.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .. import environment, protocol
from ..guard import Guard, death
from ..protocol import CallError, CellEnd, Outcome, Violation
from ..text import has_surrogates, replace_surrogates
from . import processes
from .session import FILE_PROBLEMS, Cell, FileRefused, Files, SessionError, SessionLost

_START_SECONDS = 30.0
_FILE_SECONDS = 30.0
_BURY_SECONDS = 10.0
_FILE_CHUNK = 1 << 20
_READ_BYTES = 1 << 18
_CODE_BYTES = 8 << 20
_PATH_CHARS = 1000

_MEMORY_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cell may do: bytes that it writes to stdout, and to stderr; seconds from its interrupt to its kill."""

    output: int = 16 << 20
    grace: float = 1.0


class LocalSession:
    """See ``Session``. One a process, whose only children are the guest's: see ``processes``."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._guest: _Guest | None = None
        self._closed = False

    async def start(self) -> LocalSession:
        """Begin the first interpreter.

        Raises:
            SessionError: there can be none.
        """
        processes.adopt_orphans()
        await self._begin()
        return self

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - this is what keeps it
        """See ``Session.execute``."""
        source = replace_surrogates(code).encode()
        if len(source) > _CODE_BYTES:
            raise SessionError(f"{len(source)} bytes of code are too many; {_CODE_BYTES} can be run at once")
        return await self._living().execute(source.decode(), timeout)

    async def reset(self) -> None:
        """See ``Session.reset``. The folder stays as it is: it may be one of the user's."""
        await self._end()
        await self._begin()

    async def put(self, path: str, data: bytes) -> None:
        """See ``Session.put``."""
        guest = self._living()
        for start in range(0, max(1, len(data)), _FILE_CHUNK):
            piece = data[start : start + _FILE_CHUNK]
            more = start > 0

            def message(number: int, piece: bytes = piece, more: bool = more) -> protocol.PutFile:
                return protocol.PutFile(number, path, piece, more)

            await guest.ask_for_file(path, message)

    async def get(self, path: str, most: int) -> bytes:
        """See ``Session.get``."""
        guest, data = self._living(), b""
        while True:
            offset, size = len(data), min(_FILE_CHUNK, most - len(data) + 1)

            def message(number: int, offset: int = offset, size: int = size) -> protocol.GetFile:
                return protocol.GetFile(number, path, offset, size)

            piece = await guest.ask_for_file(path, message)
            data += piece
            if len(data) > most:
                raise FileRefused(_file_problem(path, "too_large"))
            if len(piece) < size:
                return data

    async def list(self, most: int) -> Files:
        """See ``Session.list``."""
        found = await self._living().ask_for_list(most)
        return Files(found.files, found.more)

    async def close(self) -> None:
        """See ``Session.close``."""
        self._closed = True
        await self._end()

    def _living(self) -> _Guest:
        if self._guest is None:
            raise SessionLost("the Python process is gone")
        if self._guest.lost is not None:
            raise SessionLost(f"the Python process is gone ({self._guest.lost})")
        return self._guest

    async def _begin(self) -> None:
        if self._closed:
            raise SessionError("the session is closed")
        guest = _Guest(self._limits)
        await guest.start(self._folder)
        self._guest = guest
        try:
            await guest.be_ready()
        except BaseException:
            await self._end()
            raise

    async def _end(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            await guest.end("it was ended")


class _Guest:
    """One life of the interpreter."""

    def __init__(self, limits: Limits) -> None:
        self._limits = _limits(limits)
        self._guard = Guard(self._limits)
        self._loop = asyncio.get_running_loop()
        self._cell = 0
        self._running: _Running | None = None
        self._request = 0
        self._asked: dict[int, asyncio.Future[protocol.FileData | protocol.FileList]] = {}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._verdict: asyncio.Future[tuple[Outcome, str]] = self._loop.create_future()
        self._clock: asyncio.TimerHandle | None = None
        self.lost: str | None = None

    async def start(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._oom_kills = _oom_kills()
        try:
            with theirs:
                self._process = _spawn(theirs, folder)
        except OSError as error:
            ours.close()
            raise SessionError(f"the Python process cannot be started: {error}") from error
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._life = self._loop.create_task(self._live())
        limits = self._limits
        self._send(
            protocol.Start(
                "", limits.prompt_bytes, limits.batch, limits.frame_bytes, limits.display_bytes, [], []
            )
        )
        self._send(protocol.Load("text", "frame", b""))

    async def be_ready(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise SessionError(f"the Python process did not start within {_START_SECONDS:g} s") from None

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - this is what keeps it
        self._cell += 1
        running = self._running = _Running(self._loop)
        self._guard.execute(self._cell, timeout, time.monotonic())
        self._send(protocol.Execute(self._cell, code, timeout))
        self._set_clock()
        try:
            return await asyncio.shield(running.result)
        except asyncio.CancelledError:
            self._interrupt(Outcome.KILLED)
            await asyncio.wait([running.result])
            raise

    async def ask_for_file(
        self, path: str, question: Callable[[int], protocol.PutFile | protocol.GetFile]
    ) -> bytes:
        if "\0" in path or len(path) > _PATH_CHARS or has_surrogates(path):
            raise FileRefused(_file_problem(path, "outside"))
        answer = await self._ask(path, question)
        assert isinstance(answer, protocol.FileData)
        if answer.error is not None:
            raise FileRefused(_file_problem(path, answer.error))
        return answer.data

    async def ask_for_list(self, most: int) -> protocol.FileList:
        answer = await self._ask(".", lambda number: protocol.ListFiles(number, most))
        assert isinstance(answer, protocol.FileList)
        return answer

    async def end(self, why: str) -> None:
        """Kill it and all that it has started; its running cell ends with it."""
        self._end(Outcome.KILLED, why)
        await self._life

    async def _ask(
        self, path: str, question: Callable[[int], protocol.PutFile | protocol.GetFile | protocol.ListFiles]
    ) -> protocol.FileData | protocol.FileList:
        self._request += 1
        number, asked = self._request, question(self._request)
        answer = self._asked[number] = self._loop.create_future()
        try:
            self._guard.ask(asked)
            self._send(asked)
            async with asyncio.timeout(_FILE_SECONDS):
                return await answer
        except TimeoutError:
            raise FileRefused(_file_problem(path, "io")) from None
        finally:
            self._asked.pop(number, None)

    def _send(self, message: protocol.ToGuest) -> None:
        self._writer.write(protocol.frame(protocol.encode(message)))

    # Its life

    async def _live(self) -> None:
        listening = self._loop.create_task(self._listen())
        outcome, detail = await asyncio.shield(self._verdict)
        listening.cancel()
        self._writer.transport.abort()
        try:
            await processes.end_all(_BURY_SECONDS)
        except TimeoutError:
            detail = f"{detail}; some of its processes could not be killed"
        self._process.poll()  # reaped already; so that Popen knows
        self._tell_of_the_end(outcome, detail)

    def _tell_of_the_end(self, outcome: Outcome, detail: str) -> None:
        self.lost = detail
        if self._clock is not None:
            self._clock.cancel()
        if self._guard.cell is not None:
            self._finish(
                self._guard.end_cell(outcome, None, time.monotonic(), protocol.NOT_MEASURED, died=detail)
            )
        if not self._ready.done():
            self._ready.set_exception(SessionError(f"the Python process did not start: {detail}"))
            self._ready.exception()  # retrieved here too: after a cancelled start nobody else will
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(SessionLost(f"the Python process is gone ({detail})"))

    async def _listen(self) -> None:
        frames = protocol.FrameBuffer(self._limits.frame_bytes)
        try:
            while data := await self._reader.read(_READ_BYTES):
                for payload in frames.feed(data):
                    now = time.monotonic()
                    await asyncio.sleep(max(0.0, (self._guard.quiet_until(now) or now) - now))
                    self._judge(payload)
                await self._writer.drain()  # who does not read is not read
        except (Violation, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            detail = str(error) if isinstance(error, Violation) else "a frame that is no message"
            self._end(Outcome.PROTOCOL_VIOLATION, detail)
        except ConnectionError:
            pass
        self._end(*death(None))

    def _judge(self, payload: bytes) -> None:
        message = protocol.decode_from_guest(payload)
        if isinstance(message, protocol.ReplExit):
            self._end(*self._how_it_died(message))  # there is nothing to hear after it
            return
        now = time.monotonic()
        heard, refusal = self._guard.accept(message, now)
        for verdict in heard:
            self._hear(verdict, now)
        if refusal is not None:
            self._send(refusal)
        if self._guard.output_exceeded:
            self._interrupt(Outcome.OUTPUT_LIMIT)

    def _how_it_died(self, last_words: protocol.ReplExit) -> tuple[Outcome, str]:
        outcome, detail = death(last_words)
        if outcome is Outcome.KILLED and _oom_kills() > self._oom_kills:
            return Outcome.OOM, "the kernel ended it for want of memory"
        return outcome, detail

    def _hear(self, message: protocol.FromShim, now: float) -> None:
        match message:
            case protocol.Ready():
                self._ready.set_result(None)
            case protocol.Output() | protocol.Display():
                if self._running is not None:
                    self._running.take(message)
            case protocol.Call():
                nobody = CallError("unavailable", "there is no worker here")
                reply = protocol.Reply(message.call, [nobody] * len(message.prompts))
                if self._guard.reply(reply, now):
                    self._send(reply)
            case protocol.FileData() | protocol.FileList():
                if message.request in self._asked and not self._asked[message.request].done():
                    self._asked[message.request].set_result(message)
            case CellEnd():
                self._finish(message)
            case _:
                pass  # an answer, say, which nobody asked for

    def _finish(self, end: CellEnd) -> None:
        running, self._running = self._running, None
        if running is not None and not running.result.done():
            running.result.set_result(running.finish(end))

    def _interrupt(self, outcome: Outcome) -> None:
        cell = self._guard.cell
        if cell is not None and cell.interrupted is None:
            self._guard.interrupt(outcome, time.monotonic())
            self._send(protocol.Interrupt(cell.number))
            self._set_clock()

    def _set_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
        if self._guard.cell is not None:
            self._clock = self._loop.call_at(self._guard.cell.deadline(), self._time_is_up)

    def _time_is_up(self) -> None:
        """The running cell's deadline; a cell that has ended meanwhile has set no other."""
        cell = self._guard.cell
        if cell is None:
            return
        if time.monotonic() < cell.deadline():
            self._set_clock()
        elif cell.interrupted is None:
            self._interrupt(Outcome.TIMEOUT)
        else:
            self._end(cell.interrupted, "it did not stop when interrupted")

    def _end(self, outcome: Outcome, detail: str) -> None:
        if not self._verdict.done():
            self._verdict.set_result((outcome, detail))


class _Running:
    """What has come of a cell so far."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.result: asyncio.Future[Cell] = loop.create_future()
        self.output = {1: bytearray(), 2: bytearray()}
        self.display: list[Mapping[str, str | bytes]] = []

    def take(self, message: protocol.Output | protocol.Display) -> None:
        """What the cell wrote, or shows."""
        if isinstance(message, protocol.Output):
            self.output[message.stream] += message.data
        else:
            self.display.append({**message.text, **message.images})  # type: ignore[dict-item]  # mypy does not widen a Literal key to str

    def finish(self, end: CellEnd) -> Cell:
        return Cell(
            outcome=Outcome(end.outcome),
            stdout=self.output[1].decode("utf-8", "replace"),
            stderr=self.output[2].decode("utf-8", "replace"),
            display=self.display,
            error=end.error,
            lost=end.state_lost,
            detail=end.detail,
        )


def _spawn(stream: socket.socket, folder: Path) -> subprocess.Popen[bytes]:
    """Init, in the folder, without this process's environment.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "supdist.sandbox_image.guest"],
        stdin=stream.fileno(),
        stdout=stream.fileno(),
        cwd=folder,
        env={**environment.VARIABLES, "HOME": str(folder)},
        umask=0o022,
        start_new_session=True,
    )


def _limits(limits: Limits) -> protocol.SessionLimits:
    """As the guard takes them. What a container limits, it does not look at."""
    return protocol.SessionLimits(
        output_bytes=limits.output,
        display_bytes=8 << 20,
        frame_bytes=16 << 20,
        prompt_bytes=1 << 20,
        batch=1024,
        pending_calls=8192,
        calls_per_second=10_000.0,
        wall_seconds=1.0,
        grace_seconds=limits.grace,
        tools=0,
    )


def _oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where it does not tell."""
    for path in _MEMORY_EVENTS:
        try:
            found = re.search(r"^oom_kill (\d+)$", Path(path).read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _file_problem(path: str, code: protocol.FileCode) -> str:
    return f"{path!r}: {FILE_PROBLEMS[code]}"
