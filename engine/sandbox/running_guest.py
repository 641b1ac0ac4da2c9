"""A guest from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ...sandbox_image import protocol
from ...sandbox_image.file_transfer import FileTransfer
from ...sandbox_image.protocol import CellEnd
from ..errors import SandboxError, SandboxFileError, SandboxLost, SandboxUnavailable
from ..toolbox.toolbox import ToolCalls
from .backend import Backend, Guest
from .call_answers import CallAnswers
from .config import Isolation, OnCall, SandboxConfig
from .diagnostics import describe_exit, setup_error_for, translate_shortage
from .running_cell import RunningCell

_CLOSE_SECONDS = 10.0
_STOP_MARGIN_SECONDS = 5.0
_LEAST_CONNECT_SECONDS = 5.0

FindBackend: TypeAlias = Callable[[], Awaitable[Backend]]


@dataclass(frozen=True, slots=True)
class GuestSetup:
    """The settings of a guest, for its first start and each reset."""

    config: SandboxConfig
    # The config's; each cell needs them.
    limits: protocol.SessionLimits
    context: object
    has_context: bool
    query: str | None
    on_call: OnCall | None
    tools: ToolCalls


@dataclass(frozen=True, slots=True)
class Starting:
    """The guest has not reported its isolation yet."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The guest waits for a cell."""


@dataclass(frozen=True, slots=True)
class Running:
    """The guest runs a cell."""

    cell: RunningCell


@dataclass(frozen=True, slots=True)
class Lost:
    """The guest's variables are gone."""

    reason: str


# A guest may pass these between cells, by a child that outlived its cell.
_LIMITS = (protocol.Outcome.OOM, protocol.Outcome.RESOURCE_LIMIT)
GuestState: TypeAlias = Starting | Idle | Running | Lost
DID_NOT_START = "the sandbox did not start"


class RunningGuest:
    """One guest; a reset of the sandbox replaces it."""

    def __init__(self, guest: Guest, setup: GuestSetup) -> None:
        self.state: GuestState = Starting()
        self.files = FileTransfer(setup.limits, self.send, self._check_alive, SandboxFileError)
        self._guest = guest
        self._setup = setup
        self._calls = CallAnswers(setup.on_call, setup.tools, guest.send, guest.send_pieces, self._fail)
        self._cells = 0
        self._hello: protocol.Hello | None = None
        # A limit that was passed between cells: the result of the next one.
        self._limit: protocol.Exit | None = None
        self._is_closing = False
        self._shim_was_killed = False
        # Done when the shim has sent its first message, or will never do so.
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[Isolation] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()

    @classmethod
    async def start(cls, find_backend: FindBackend, setup: GuestSetup) -> RunningGuest:
        """Start a guest, and wait until it has measured its isolation.

        If its zygote or shim is killed or stopped meanwhile, start it once more: no code has run yet.

        Raises:
            SandboxUnavailable: this machine cannot build the isolation, or is short of something.
            SandboxLost: the guest died before it was ready.
            TaskError: the context is no plain data, or the packages cannot be read.
        """
        config = setup.config
        with translate_shortage("The sandbox cannot be opened"):
            backend = await find_backend()
            try:
                async with asyncio.timeout(config.start_timeout):
                    guest = await cls._start(backend, setup)
                    if guest is None:
                        guest = await cls._start(await find_backend(), setup, is_last=True)
            except TimeoutError:
                raise SandboxUnavailable(
                    f"The sandbox did not start within {config.start_timeout:g} s",
                    "Raise `start_timeout`, or check whether the machine is overloaded.",
                ) from None
        assert guest is not None
        return guest

    @classmethod
    async def _start(
        cls, backend: Backend, setup: GuestSetup, *, is_last: bool = False
    ) -> RunningGuest | None:
        # None: its zygote or shim ended, and another try may succeed.
        guest: RunningGuest | None = None
        try:
            guest = await cls._open(backend, setup)
            await guest._wait_connected()
            _check_isolation(await guest._ready, setup.config)
        except BaseException as error:
            if guest is not None:
                # Shielded: a second cancellation must not leave the guest behind.
                await asyncio.shield(asyncio.ensure_future(guest.close()))
            was_killed = not backend.alive or (guest is not None and guest._shim_was_killed)
            if isinstance(error, SandboxLost) and was_killed and not is_last:
                return None
            raise
        return guest

    @classmethod
    async def _open(cls, backend: Backend, setup: GuestSetup) -> RunningGuest:
        running: RunningGuest

        def receive(message: protocol.FromShim | protocol.ShimExit) -> None:
            running.receive(message)

        # The first message finds ``running`` set: a backend awaits nothing after it has ordered the shim.
        guest = await backend.open(receive, setup.config, setup.context, setup.tools.toolbox)
        running = cls(guest, setup)
        return running

    async def _wait_connected(self) -> None:
        # Seconds in which this event loop ran, so that its own pauses do not count.
        seconds, most = 0, max(_LEAST_CONNECT_SECONDS, self._setup.config.start_timeout / 2)
        while not self._connected.done():
            await asyncio.wait([self._connected], timeout=1)
            seconds += 1
            if not self._connected.done() and (self._guest.is_stopped or seconds >= most):
                self._give_up()

    def _give_up(self) -> None:
        self._guest.give_up()
        self._shim_was_killed = True
        self._end("the process that forks sandboxes does not answer")

    @property
    def is_ours(self) -> bool:
        """Whether this process started it, and is not a fork of that one."""
        return self._guest.is_ours

    def check_usable(self) -> None:
        """See ``ZygoteClient.check_usable``."""
        self._guest.check_usable()

    def answering_seconds(self) -> float:
        """Return for how long calls of its code have been answered. Its clock stood still meanwhile."""
        return self._calls.seconds()

    @property
    def isolation(self) -> Isolation:
        """The isolation, as the guest measured it."""
        return self._ready.result()

    @property
    def is_running(self) -> bool:
        """Whether a cell runs."""
        return isinstance(self.state, Running)

    def send(self, message: protocol.ToShim) -> None:
        """Send to the shim."""
        self._guest.send(message)

    def execute(self, source: str, timeout: float) -> RunningCell:
        """Start a cell in an idle guest, or end it at once if a limit was passed since the last one."""
        self._cells += 1
        limits = self._setup.limits
        cell = RunningCell(self._cells, limits.result_bytes, limits.output_bytes)
        if self._limit is not None:
            cell.finish(_not_run(cell.number, self._limit))
            self._limit = None
            return cell
        assert isinstance(self.state, Idle)
        self.state = Running(cell)
        self.send(protocol.Execute(cell.number, source, timeout))
        return cell

    def interrupt(self) -> None:
        """Interrupt the cell, if one runs."""
        if isinstance(self.state, Running):
            self.send(protocol.Interrupt(self.state.cell.number))

    async def stop_cell(self, cell: RunningCell) -> None:
        """Interrupt a cell, and kill the guest if the cell does not end."""
        self.send(protocol.Interrupt(cell.number))
        _, pending = await asyncio.wait(
            [cell.result], timeout=self._setup.config.grace + _STOP_MARGIN_SECONDS
        )
        if pending:
            await self.close()

    async def abandon(self) -> None:
        """Kill a shim that does not read, and close."""
        self._guest.abandon()
        await self.close()

    async def close(self) -> None:
        """Kill the guest, and wait for its end."""
        if not self.is_ours:
            # The sockets are those of the process that forked this one.
            return
        if not self._gone.is_set():
            # The shim kills the guest; if the shim hangs, the zygote kills the shim.
            self._is_closing = True
            self.send(protocol.Kill())
            if not await self._is_gone_within(_CLOSE_SECONDS):
                self._guest.abandon()
                if self._guest.is_stopped or not await self._is_gone_within(_CLOSE_SECONDS):
                    self._give_up()
        await self._guest.discard()
        await self._calls.stop()

    async def _is_gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    def receive(self, message: protocol.FromShim | protocol.ShimExit) -> None:
        """Handle a message of the shim."""
        match message:
            case protocol.Call() | protocol.ToolCall() | protocol.Taken():
                self._answer_or_count(message)
            case protocol.FileData() | protocol.FileList():
                self.files.receive(message)
            case protocol.Output() | protocol.Display() | protocol.Final():
                # After a failed call the cell has its result; what it still writes is dropped.
                if isinstance(self.state, Running):
                    self.state.cell.add(message)
            case CellEnd():
                self._end_cell(message)
            case protocol.Hello() | protocol.Ready() | protocol.SetupFailed():
                self._continue_start(message)
            case protocol.Exit():
                if message.outcome in _LIMITS:
                    self._end_at_limit(message)
                self._end(message.detail)
            case protocol.ShimExit():
                self._shim_was_killed = not self._gone.is_set() and message.status != 0
                self._end(describe_exit(message.status))

    def _end_at_limit(self, end: protocol.Exit) -> None:
        if isinstance(self.state, Running):
            self._end_cell(_not_run(self.state.cell.number, end))
        elif isinstance(self.state, Idle):
            self._limit = end

    def _answer_or_count(self, message: protocol.Call | protocol.ToolCall | protocol.Taken) -> None:
        if isinstance(message, protocol.Taken):
            self._calls.taken(message.count)
        # After a failed call the cell has its result, and needs no more answers.
        elif isinstance(self.state, Running):
            self._calls.answer(message, self.state.cell.context)

    def _continue_start(self, message: protocol.Hello | protocol.Ready | protocol.SetupFailed) -> None:
        setup = self._setup
        if not self._connected.done():
            self._connected.set_result(None)
        if isinstance(message, protocol.Hello):
            self._hello = message
            # The first Kill was sent before there was a shim to read it.
            if self._is_closing:
                self.send(protocol.Kill())
                return
            toolbox = setup.tools.toolbox
            start = protocol.Start.of(
                setup.limits,
                setup.query,
                toolbox.guest,
                toolbox.host,
                has_context=setup.has_context,
                has_worker=setup.on_call is not None,
            )
            self.send(start)
            self.send(self._guest.load)
        # The start was cancelled, or the guest has ended.
        elif self._ready.done():
            return
        elif isinstance(message, protocol.Ready):
            self.state = Idle()
            guest, hello = self._guest, self._hello
            assert hello is not None, "a shim says Hello first"
            held = guest.held or hello.enforcement
            self._ready.set_result(
                Isolation.from_facts(guest.backend, message.facts, hello.namespaces, held, guest.lowered)
            )
        else:
            self._ready.set_exception(setup_error_for(message.step, message.errno, setup.config.packages))

    def _end_cell(self, end: CellEnd) -> None:
        cell = self._leave_cell()
        if end.state_lost:
            self._lose(f"the sandbox ended with its last block ({end.outcome})")
        if cell is not None:
            cell.finish(end)

    def _end(self, detail: str) -> None:
        if not self._connected.done():
            self._connected.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(SandboxLost(f"the sandbox ended before it was ready: {detail}"))
            # Retrieved here too: after a cancelled start no other code does, and asyncio would log it.
            self._ready.exception()
        cell = self._leave_cell()
        self._lose(DID_NOT_START if isinstance(self.state, Starting) else detail)
        if cell is not None:
            cell.fail(SandboxLost(f"the sandbox was lost while a block ran: {detail}"))
        self.files.fail(SandboxLost(f"the sandbox was lost: {detail}"))
        self._gone.set()

    def _fail(self, error: Exception) -> None:
        # A call's answer failed: the caller of the cell gets the exception, and the guest ends.
        cell = self._leave_cell(cancel_calls=False)
        self.state = Lost("the function that answers its calls failed")
        if cell is not None:
            cell.fail(error)
        self.send(protocol.Kill())

    def _leave_cell(self, *, cancel_calls: bool = True) -> RunningCell | None:
        if cancel_calls:
            self._calls.cancel()
        if not isinstance(self.state, Running):
            return None
        cell = self.state.cell
        self.state = Idle()
        return cell

    def _lose(self, reason: str) -> None:
        # The first reason is the cause.
        if not isinstance(self.state, Lost):
            self.state = Lost(reason)

    def check_idle(self) -> None:
        """Check that a cell can start.

        Raises:
            SandboxError: a cell runs.
            SandboxLost: the guest has ended.
        """
        if isinstance(self.state, Running):
            raise SandboxError("a cell is running in this sandbox; wait for its end, or interrupt it")
        if self._limit is None:
            self._check_alive()

    def _check_alive(self) -> None:
        advice = "Call reset() for a fresh start"
        match self.state:
            case Starting():
                raise SandboxLost(f"{DID_NOT_START}. {advice}")
            case Lost(reason):
                raise SandboxLost(f"{reason}; its variables and files are gone. {advice}")
            case Idle() | Running():
                return


def _check_isolation(isolation: Isolation, config: SandboxConfig) -> None:
    missing = isolation.missing() if config.isolation == "strict" else []
    if missing:
        raise SandboxUnavailable(
            f"The sandbox started without {', '.join(missing)}",
            "`supdist-engine doctor` says what to do; `isolation: best_effort` accepts less.",
        )


def _not_run(cell: int, end: protocol.Exit) -> CellEnd:
    return CellEnd(
        cell=cell, outcome=end.outcome, error=None, elapsed=0.0, worker_wait=0.0, truncated=False,
        state_lost=True, dropped=0, detail=end.detail, usage=protocol.NOT_MEASURED,
    )  # fmt: skip
