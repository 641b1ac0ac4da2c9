"""A sandbox as its user sees it: execute, reset, close."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallError, CellEnd, Outcome
from ...sandbox_image.text import has_surrogates, replace_surrogates
from ..errors import LocalProtocolError, SandboxError, SandboxFileError, SandboxLost, SandboxUnavailable
from ..toolbox.toolbox import ToolCalls
from .backend import Backend, Guest
from .config import CellResult, Display, Isolation, Listing, OnCall, SandboxConfig, WorkerCall
from .diagnostics import failure

_CLOSE_SECONDS = 10.0
_FILE_SECONDS = 30.0
_LATE_SECONDS = 10.0
"""How late a shim may be with the end of a cell whose time is up; one that is stopped never tells."""
_FILE_CHUNK = 1 << 20
_PATH_CHARS = 1000


class Sandbox:
    """One guest and the state of its namespace. Made by ``open_sandbox``."""

    def __init__(
        self,
        backend: Callable[[], Awaitable[Backend]],
        config: SandboxConfig,
        context: object,
        query: str,
        *,
        on_call: OnCall | None,
        tools: ToolCalls,
    ) -> None:
        self._find_backend = backend
        self._config = config
        self._context = context
        self._query = replace_surrogates(query)
        self._changing, self._filing = asyncio.Lock(), asyncio.Lock()
        self._on_call = on_call
        self._tools = tools
        self._cell = 0
        self._running: _RunningCell | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._files: dict[int, asyncio.Future[protocol.FileData | protocol.FileList]] = {}
        self._file_number = 0
        self._isolation: Isolation | None = None
        self._lost: str | None = None
        self._guest: Guest | None = None
        self._closed = False

    @property
    def isolation(self) -> Isolation:
        """What was measured of the walls from inside."""
        assert self._isolation is not None, "known once the sandbox is open"
        return self._isolation

    async def start(self) -> None:
        """Build the walls and load the context.

        Raises:
            SandboxUnavailable: the isolation that the config asks for cannot be had here.
            SandboxLost: the sandbox died before it was ready.
            TaskError: the context holds something that is no plain data, or the packages cannot be read.
        """
        backend = await self._find_backend()
        self._host: dict[str, int] = {}
        self._ready: asyncio.Future[Isolation] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()
        self._lost = "the sandbox did not start"
        self._guest = None
        self._doomed = False
        try:
            async with asyncio.timeout(self._config.start_timeout):
                self._guest = await backend.open(
                    self._receive, self._config, self._context, self._tools.toolbox
                )
                self._isolation = await self._ready
        except TimeoutError:
            await self._kill()
            raise SandboxUnavailable(
                f"The sandbox did not start within {self._config.start_timeout:g} s",
                "Raise `start_timeout`, or look whether the machine is overloaded.",
            ) from None
        except BaseException:
            await self._kill()
            raise
        missing = self._isolation.missing()
        if missing and self._config.isolation == "strict":
            await self._kill()
            raise SandboxUnavailable(
                f"The sandbox started without {', '.join(missing)}",
                "`supdist-engine doctor` says what to do; `isolation: best_effort` takes less.",
            )

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:  # noqa: ASYNC109 - the shim keeps it
        """Run a block of code in the sandbox's namespace.

        Args:
            code: Python source; its variables stay for the next cell.
            timeout: seconds, not counting waits for workers and tools; the config's by default.

        Returns:
            how it ended. What the code does, up to killing its own interpreter, is a result and no exception.

        Raises:
            SandboxLost: the sandbox died in an earlier cell, or its machinery was killed from outside.
            SandboxError: another cell runs here, or the sandbox is closed.
            ValueError: the timeout is no positive number, or the code too long.
        """
        timeout = self._config.timeout if timeout is None else timeout
        self._check_usable()
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        most = self._config.session_limits().frame_bytes // 2
        if len(code) > most:  # before anything is copied
            raise ValueError(
                f"a block of {len(code)} characters is too long; at most {most} bytes can be sent"
            )
        source = replace_surrogates(code)
        if len(source.encode()) > most:
            raise ValueError(
                f"a block of {len(source)} characters is too long; at most {most} bytes can be sent"
            )
        self._cell += 1
        running = self._running = _RunningCell(self._cell)
        self._send(protocol.Execute(self._cell, source, timeout))
        longest = self._config.wall + self._config.grace + _LATE_SECONDS
        try:
            _, late = await asyncio.wait([running.result], timeout=longest)
        except asyncio.CancelledError:
            await self._stop_cell(running)
            raise
        if late:
            self._live.abandon()  # it would not hear a Kill
            await self._kill()
        return await running.result

    async def interrupt(self) -> None:
        """Stop the running cell: KeyboardInterrupt first, a kill after the grace. Its outcome is ``killed``."""
        if self._running is not None:
            self._send(protocol.Interrupt(self._running.number))

    async def put(self, path: str, data: bytes) -> None:
        """Write a file below the working directory, /work; folders on the way are made.

        Raises:
            SandboxFileError: the path leads outside or over something that is no file or folder, or there
                is no room.
            SandboxLost, SandboxError: as for ``execute``; a running cell does not matter.
        """
        chunks = range(0, max(1, len(data)), self._file_chunk())
        for start in chunks:

            def message(number: int, start: int = start) -> protocol.PutFile:
                return protocol.PutFile(number, path, data[start : start + self._file_chunk()], start > 0)

            await self._ask_for_file(path, message)

    async def get(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """Read a regular file below the working directory. The bytes count, not the size that it claims.

        Raises:
            SandboxFileError: it is missing, no regular file, outside, or larger than ``max_bytes``.
            SandboxLost, SandboxError: as for ``put``.
        """
        pieces: list[bytes] = []
        read = 0
        while True:
            size = min(self._file_chunk(), max_bytes - read + 1)

            def message(number: int, offset: int = read, size: int = size) -> protocol.GetFile:
                return protocol.GetFile(number, path, offset, size)

            piece = await self._ask_for_file(path, message)
            pieces.append(piece)
            read += len(piece)
            if read > max_bytes:
                raise SandboxFileError("too_large", path)
            if len(piece) < size:
                return b"".join(pieces)

    async def list(self, *, most: int = 1000) -> Listing:
        """The regular files below the working directory, /work, as the sandbox tells of them: the upper folders first.

        Raises:
            SandboxFileError: they cannot be listed in time.
            SandboxLost, SandboxError: as for ``put``.
        """
        answer = await self._ask(".", lambda number: protocol.ListFiles(number, most))
        assert isinstance(answer, protocol.FileList)
        return Listing(tuple(answer.files), answer.more)

    def _file_chunk(self) -> int:
        """Bytes of a file that go into one frame."""
        return min(_FILE_CHUNK, self._config.session_limits().frame_bytes // 2)

    async def _ask_for_file(
        self, path: str, message: Callable[[int], protocol.PutFile | protocol.GetFile]
    ) -> bytes:
        answer = await self._ask(path, message)
        assert isinstance(answer, protocol.FileData)
        if answer.error is not None:
            raise SandboxFileError(answer.error, path)
        return answer.data

    async def _ask(
        self, path: str, message: Callable[[int], protocol.PutFile | protocol.GetFile | protocol.ListFiles]
    ) -> protocol.FileData | protocol.FileList:
        """One question about files, and its answer: one after another, however many are asked, so that neither side has more
        of them waiting than it sends on.
        """
        if "\0" in path or len(path) > _PATH_CHARS or has_surrogates(path):
            raise SandboxFileError("outside", path)
        async with self._filing:
            return await self._ask_now(path, message)

    async def _ask_now(
        self, path: str, message: Callable[[int], protocol.PutFile | protocol.GetFile | protocol.ListFiles]
    ) -> protocol.FileData | protocol.FileList:
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if self._lost is not None:
            raise SandboxLost(f"{self._lost}. Call reset() for a fresh start")
        self._file_number += 1
        number, answer = self._file_number, asyncio.get_running_loop().create_future()
        self._files[number] = answer
        try:
            self._send(message(number))
            async with asyncio.timeout(_FILE_SECONDS):
                return await answer
        except TimeoutError:
            raise SandboxFileError("io", path) from None
        finally:
            self._files.pop(number, None)

    async def reset(self) -> None:
        """Start afresh: a new interpreter in new walls, with nothing of the old one, dead or alive.

        Raises:
            SandboxError: the sandbox is closed, or a cell runs.
            SandboxUnavailable, SandboxLost, TaskError: as at the first start.
        """
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if self._running is not None:
            raise SandboxError("a cell is running in this sandbox; wait for it, or interrupt it")
        async with self._changing:
            await self._kill()
            self._cell = 0
            await self.start()

    async def close(self) -> None:
        """End the sandbox and wait until nothing is left of it. May be called twice, and during a cell."""
        self._closed = True
        async with self._changing:
            await self._kill()

    def _check_usable(self) -> None:
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if self._changing.locked():
            raise SandboxError("this sandbox is being reset")
        if self._running is not None:
            raise SandboxError("a cell is running in this sandbox; one after another, please")
        if self._lost is not None:
            raise SandboxLost(f"{self._lost}; every variable is gone. Call reset() for a fresh start")

    @property
    def _live(self) -> Guest:
        assert self._guest is not None, "there is one from the start to the end"
        return self._guest

    def _send(self, message: protocol.ToShim) -> None:
        self._live.send(message)

    async def _stop_cell(self, running: _RunningCell) -> None:
        """After a cancellation: the cell must not run on. Bounded by the grace."""
        self._send(protocol.Interrupt(running.number))
        _, pending = await asyncio.wait([running.result], timeout=self._config.grace + 5)
        if pending:
            await self._kill()

    async def _kill(self) -> None:
        if self._guest is None:
            return
        if not self._gone.is_set():
            self._doomed = True
            self._send(protocol.Kill())
            if not await self._is_gone_within(_CLOSE_SECONDS):
                self._guest.abandon()
                if not await self._is_gone_within(_CLOSE_SECONDS):
                    self._end("the sandbox's shim could not be killed")
        await self._guest.discard()
        await self._end_calls()

    async def _is_gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    async def _end_calls(self) -> None:
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls, timeout=_CLOSE_SECONDS)

    # What the shim says

    def _receive(self, message: protocol.FromShim | protocol.ShimExit) -> None:
        match message:
            case protocol.Call() | protocol.ToolCall():
                self._begin(message)
            case protocol.FileData() | protocol.FileList():
                waiting = self._files.get(message.request)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case protocol.Output() | protocol.Display() | protocol.Final():
                if self._running is not None:
                    self._running.take(message)
            case CellEnd():
                self._end_cell(message)
            case protocol.Hello() | protocol.Ready() | protocol.SetupFailed():
                self._go_on_starting(message)
            case protocol.Exit():
                self._end(message.detail)
            case protocol.ShimExit():
                self._end("the sandbox's shim was killed" if message.status else "the sandbox ended")

    def _go_on_starting(self, message: protocol.Hello | protocol.Ready | protocol.SetupFailed) -> None:
        if isinstance(message, protocol.Hello):
            self._host = message.namespaces
            if self._doomed:  # closed before its shim could hear of it
                self._send(protocol.Kill())
                return
            box = self._tools.toolbox
            self._send(protocol.Start(self._query, *self._guest_limits(), box.guest, box.host))
            self._send(self._live.load)
        elif self._ready.done():  # given up meanwhile
            return
        elif isinstance(message, protocol.Ready):
            self._lost = None
            guest, facts = self._live, message.facts
            self._ready.set_result(
                Isolation.from_facts(guest.walls, facts, self._host, limited=guest.limited)
            )
        else:
            self._ready.set_exception(failure(message.step, message.errno, self._config.packages))

    def _guest_limits(self) -> tuple[int, int, int, int]:
        limits = self._config.session_limits()
        return limits.prompt_bytes, limits.batch, limits.frame_bytes, limits.display_bytes

    def _end_cell(self, end: CellEnd) -> None:
        running, self._running = self._running, None
        for task in self._calls:
            task.cancel()
        if end.state_lost and self._lost is None:
            self._lost = f"the sandbox ended with its last block ({end.outcome})"
        if running is not None and not running.result.done():
            running.result.set_result(running.finish(end))

    def _end(self, detail: str) -> None:
        """The sandbox is gone, for whatever reason. Said once or several times."""
        if not self._ready.done():
            self._ready.set_exception(SandboxLost(f"the sandbox ended before it was ready: {detail}"))
            self._ready.exception()  # retrieved here too: after a cancelled start nobody else will
        if self._lost is None:
            self._lost = detail
        running, self._running = self._running, None
        for task in self._calls:
            task.cancel()
        if running is not None and not running.result.done():
            running.result.set_exception(SandboxLost(f"the sandbox was lost while a block ran: {detail}"))
            running.result.exception()
        for waiting in self._files.values():
            if not waiting.done():
                waiting.set_exception(SandboxLost(f"the sandbox was lost: {detail}"))
        self._gone.set()

    def _fail(self, error: Exception) -> None:
        """What answers calls broke: the cell's caller gets its exception, and the sandbox ends."""
        self._lost = "the function that answers its calls failed"
        running, self._running = self._running, None
        if running is not None and not running.result.done():
            running.result.set_exception(error)
        self._send(protocol.Kill())

    def _begin(self, call: protocol.Call | protocol.ToolCall) -> None:
        answering = self._answer(call) if isinstance(call, protocol.Call) else self._answer_tool(call)
        task = asyncio.get_running_loop().create_task(answering)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer_tool(self, call: protocol.ToolCall) -> None:
        try:
            reply = await self._tools.answer(call)
        except Exception as error:  # not the tool's: a log that cannot be written, say
            self._fail(error)
        else:
            self._send(reply)

    async def _answer(self, call: protocol.Call) -> None:
        """Every call gets its reply, whatever becomes of ``on_call``: the cell's clock waits for it."""
        results: Sequence[str | CallError]
        if self._on_call is None:
            results = [CallError("unavailable", "this sandbox has no worker")] * len(call.prompts)
        else:
            try:
                results = await self._on_call(WorkerCall(call.cell, call.call, call.prompts))
                _check_results(results, call)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                results = [CallError("cancelled", "the call was cancelled")] * len(call.prompts)  # not by us
            except Exception as error:
                self._fail(error)
                return
        self._send(protocol.Reply(call.call, _carryable(results)))


def _check_results(results: Sequence[object], call: protocol.Call) -> None:
    if len(results) != len(call.prompts):
        raise LocalProtocolError(f"on_call gave {len(results)} results for {len(call.prompts)} prompts")
    for result in results:
        if not isinstance(result, (str, CallError)):
            raise LocalProtocolError(
                f"on_call gave a {type(result).__name__} where a str or a CallError belongs"
            )


def _carryable(results: Sequence[str | CallError]) -> list[str | CallError]:
    """Texts as the protocol can carry them: no lone surrogates, and no more of them than a frame holds."""
    room = protocol.MAX_FRAME_BYTES - (1 << 20)
    carried: list[str | CallError] = []
    for result in results:
        if not isinstance(result, str):
            carried.append(result)
            continue
        text = replace_surrogates(result)
        room -= len(text) if text.isascii() else len(text.encode())
        if room < 0:
            carried.append(CallError("unavailable", "the answer is too large to be passed on"))
        else:
            carried.append(text)
    return carried


class _RunningCell:
    """What has come of a cell so far."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.result: asyncio.Future[CellResult] = asyncio.get_running_loop().create_future()
        self.output = {1: bytearray(), 2: bytearray()}
        self.display: list[Display] = []
        self.final: str | None = None

    def take(self, message: protocol.Output | protocol.Display | protocol.Final) -> None:
        """What the cell wrote or shows, or its answer."""
        match message:
            case protocol.Final():
                self.final = message.answer
            case protocol.Display():
                self.display.append(Display({**message.text, **message.images}))  # type: ignore[dict-item]  # mypy does not widen a Literal key to str
            case protocol.Output():
                self.output[message.stream] += message.data

    def finish(self, end: CellEnd) -> CellResult:
        return CellResult(
            cell=end.cell,
            outcome=Outcome(end.outcome),
            stdout=self.output[1].decode("utf-8", "replace"),
            stderr=self.output[2].decode("utf-8", "replace"),
            truncated=end.truncated,
            error=end.error,
            final=self.final,
            elapsed=end.elapsed,
            worker_wait=end.worker_wait,
            state_lost=end.state_lost,
            dropped=end.dropped,
            usage=end.usage,
            detail=end.detail,
            display=tuple(self.display),
        )
