"""The state machine of one guest. Its driver does the I/O, and passes it events with the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from .. import protocol
from ..protocol import (
    NOT_MEASURED,
    Call,
    Done,
    Execute,
    Exit,
    FileData,
    FileList,
    FromGuest,
    FromShim,
    GetFile,
    HungUp,
    Interrupt,
    Kill,
    ListFiles,
    Outcome,
    Output,
    PutFile,
    ReplExit,
    Reply,
    ReplyPart,
    SessionLimits,
    ToGuest,
    ToolCall,
    ToolReply,
    ToShim,
    Usage,
    Violation,
)
from .cell import Cell
from .rate import Rate
from .rules import MessageRules
from .verdict import check_exit_status, verdict_on_death

# Above these a guest is not read: the engine is slow, or the guest does not read.
_MOST_UNSENT_MESSAGES = 4096
_MOST_UNSENT_BYTES = 8 << 20
# Frames besides calls, which have their own rate. A thread that outlives its cell sends some, and a relay
# sends output; nothing needs more.
_FRAMES_PER_SECOND = 2000.0
# What a cell may send: its displays, an answer and its end.
_FRAMES_OF_CELL = protocol.MAX_DISPLAYS + 2
_INIT_MESSAGES = (FileData, FileList, ReplExit)
_ERRORS = (Violation, msgspec.MsgspecError, UnicodeError, RecursionError)

Source = Literal["repl", "init"]


class Send(NamedTuple):
    """A message to send."""

    to: Literal["engine", "repl", "init"]
    message: FromShim | ToGuest
    # Its encoding, if it arrived encoded: what was only checked is not encoded again.
    payload: bytes | None = None

    def encoded(self) -> bytes:
        """Return the encoded message."""
        return protocol.encode(self.message) if self.payload is None else self.payload


class Measured(NamedTuple):
    """What the driver measured at the end of a cell."""

    usage: Usage = NOT_MEASURED
    # The outcome and text of a limit.
    exceeded: tuple[Outcome, str] | None = None
    refused_process: bool = False


# Shared: most frames need no measurement.
_NOTHING_MEASURED = Measured()


class Backlog(NamedTuple):
    """What the driver has not written yet."""

    engine_messages: int = 0
    engine_bytes: int = 0
    guest_bytes: int = 0


class GuestSession:
    """One guest, from its start to its end.

    Args:
        has_two_streams: whether repl and init have a stream each. A single stream counts as init's.

    Attributes:
        ending: how the session ended. After it only ``end_cell`` sends.
        resume_at: when the rate of calls allows reading again.
        unmeasured: a message that waits for ``measured``.
    """

    def __init__(self, limits: SessionLimits, *, has_two_streams: bool) -> None:
        self._rules = MessageRules(limits)
        self._has_two_streams = has_two_streams
        self._frames: deque[tuple[Source, bytes]] = deque()
        self._rate = Rate(_FRAMES_PER_SECOND)
        self.resume_at: float | None = None
        self.unmeasured: Done | ReplExit | None = None
        self.ending: Exit | None = None

    @property
    def cell(self) -> Cell | None:
        """The running cell."""
        return self._rules.cell

    @property
    def has_frames(self) -> bool:
        """Whether ``process_frame`` has work."""
        return bool(self._frames) and self.ending is None

    def may_read(self, now: float, backlog: Backlog) -> bool:
        """Return whether to read the guest: the backpressure on it."""
        # While frames wait, nothing is read. Else a guest fills the queue without bound.
        return not self._frames and self.may_process(now, backlog)

    def may_process(self, now: float, backlog: Backlog) -> bool:
        """Return whether to process the next frame. ``next_time`` says when to ask again."""
        calls, cell = self._rules.calls, self._rules.cell
        self.resume_at = _later(calls.rate.resume_at(now), self._rate.resume_at(now))
        next_bytes = len(self._frames[0][1]) if self._frames else 0
        # An interrupted cell must be able to end.
        is_full = not calls.has_room(next_bytes) and (cell is None or cell.interrupted is None)
        return (
            self.resume_at is None
            and not is_full
            and backlog.engine_messages < _MOST_UNSENT_MESSAGES
            and backlog.engine_bytes < _MOST_UNSENT_BYTES
            and backlog.guest_bytes < _MOST_UNSENT_BYTES
        )

    def next_time(self) -> float | None:
        """Return when to call ``tick`` and ``may_process`` again."""
        cell = self._rules.cell
        if cell is None:
            return self.resume_at
        deadline = cell.deadline()
        return deadline if self.resume_at is None else min(deadline, self.resume_at)

    # From the engine

    def from_engine(self, message: ToShim, now: float, payload: bytes | None = None) -> list[Send]:
        """Handle a message of the engine."""
        if self.ending is not None:
            return []
        match message:
            case Kill():
                self.end(Outcome.KILLED, "killed by the engine")
                return []
            case Execute():
                self._rules.execute(message.cell, message.timeout, now)
                self._rate.give(_FRAMES_OF_CELL)
            case PutFile() | GetFile() | ListFiles():
                self._rules.expect(message)
                self._rate.give(1)
                return [Send("init", message, payload)]
            case Reply() | ToolReply():
                if not self._rules.reply(message, now):
                    return []
            case ReplyPart():
                if not self._rules.calls.is_pending(message.call):
                    return []
            case Interrupt():
                is_running = self.cell is not None and self.cell.number == message.cell
                return self._interrupt(Outcome.KILLED, now) if is_running else []
            case _:
                pass
        return [Send("repl", message, payload)]

    # From the guest

    def from_guest(self, source: Source, payloads: Iterable[bytes]) -> None:
        """Queue frames for ``process_frame``; none stands for a piece of a frame, which is counted too."""
        before = len(self._frames)
        self._frames.extend((source, payload) for payload in payloads)
        if len(self._frames) == before:
            self._rate.take()

    def process_frame(self, now: float) -> list[Send]:
        """Handle the next frame. If it sets ``unmeasured``, call ``measured`` next."""
        assert self.unmeasured is None, "call measured() before the next frame"
        source, payload = self._frames.popleft()
        try:
            message = protocol.decode_from_guest(payload)
            if self._has_two_streams and isinstance(message, _INIT_MESSAGES) != (source == "init"):
                raise Violation("a message on the wrong stream: init and repl have their own")
            if isinstance(message, Output) and (self._has_two_streams or not message.data):
                raise Violation("a frame of output: pipes are read instead, and a relay sends no empty one")
            if not isinstance(message, Call | ToolCall):
                self._rate.take()
            # The driver measures only at these: a measurement costs system calls.
            if isinstance(message, ReplExit):
                check_exit_status(message.status)
            if isinstance(message, Done | ReplExit):
                self.unmeasured = message
                return []
            return self._accept(message, payload, now, _NOTHING_MEASURED)
        except _ERRORS as error:
            self.end_with_error(error)
            return []

    def measured(self, facts: Measured, now: float) -> list[Send]:
        """Handle the ``unmeasured`` message."""
        message, self.unmeasured = self.unmeasured, None
        if self.ending is not None or message is None:
            return []
        if isinstance(message, ReplExit):
            self.end(*(facts.exceeded or verdict_on_death(message)))
            return []
        if facts.exceeded is not None:
            self.end(*facts.exceeded)
            return []
        try:
            return self._accept(message, None, now, facts)
        except _ERRORS as error:
            self.end_with_error(error)
            return []

    def output(self, stream: Literal[1, 2], data: bytes, now: float) -> list[Send]:
        """Handle output that the driver read from the cell's pipes."""
        return (
            []
            if self.cell is None
            else self._accept(Output(self.cell.number, stream, data), None, now, _NOTHING_MEASURED)
        )

    def closed(self, source: Source, exceeded: tuple[Outcome, str] | None = None) -> list[Send]:
        """Handle the end of a stream. An exceeded limit explains it best."""
        if self.ending is not None:
            return []
        if source == "repl":
            return [Send("init", HungUp())]
        self.end(*(exceeded or verdict_on_death(None)))
        return []

    # Clocks and the end

    def tick(self, now: float) -> list[Send]:
        """Interrupt the cell at its deadline; end the session after the grace."""
        cell = self.cell
        if self.ending is not None or cell is None or now < cell.deadline():
            return []
        if cell.interrupted is None:
            return self._interrupt(Outcome.TIMEOUT, now)
        self.end(cell.interrupted, "did not stop when interrupted")
        return []

    def end(self, outcome: Outcome, detail: str) -> None:
        """End the session, unless it has ended."""
        if self.ending is None:
            self.ending = Exit(outcome, detail)

    def end_with_error(self, error: Exception) -> None:
        """End the session for invalid bytes or messages."""
        # Our text only: another error would quote the guest.
        detail = str(error) if isinstance(error, Violation) else "a frame that holds no valid message"
        self.end(Outcome.PROTOCOL_VIOLATION, detail)

    def end_cell(self, now: float, usage: Usage) -> list[Send]:
        """Return the end of the cell that was running. Call it once the guest is dead."""
        assert self.ending is not None
        if self.cell is None:
            return []
        end = self._rules.end_cell(self.ending.outcome, None, now, usage, death=self.ending.detail)
        return [Send("engine", end)]

    def _accept(self, message: FromGuest, payload: bytes | None, now: float, facts: Measured) -> list[Send]:
        accepted = self._rules.accept(message, now, facts.usage, refused_process=facts.refused_process)
        passed, refusal = accepted.to_engine, accepted.to_guest
        sends: list[Send] = []
        if passed is not None:
            sends.append(Send("engine", passed, payload if passed is message else None))
        if refusal is not None:
            sends.append(Send("repl", refusal))
        if isinstance(message, Output) and self._rules.output_exceeded and self.ending is None:
            sends += self._interrupt(Outcome.OUTPUT_LIMIT, now)
        return sends

    def _interrupt(self, outcome: Outcome, now: float) -> list[Send]:
        cell = self.cell
        if cell is None or not self._rules.interrupt(outcome, now):
            return []
        return [Send("init", Interrupt(cell.number))]


def _later(first: float | None, second: float | None) -> float | None:
    return second if first is None else first if second is None else max(first, second)
