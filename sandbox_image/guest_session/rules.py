"""Check a guest's messages against its state and its limits. Times are seconds of one monotonic clock."""

from __future__ import annotations

import sys
from typing import NamedTuple

from msgspec import structs

from .. import protocol
from ..protocol import (
    NOT_MEASURED,
    Call,
    CallError,
    CellEnd,
    Display,
    Done,
    ErrorInfo,
    FileData,
    FileList,
    Final,
    FromGuest,
    FromShim,
    GetFile,
    ListFiles,
    Outcome,
    Output,
    PutFile,
    Ready,
    Reply,
    SessionLimits,
    ToolCall,
    ToolFailure,
    ToolReply,
    Usage,
    Violation,
)
from .cell import Cell
from .pending_calls import LARGEST_CALL, PendingCalls, check_prompts, prompts_cost, tool_cost

# Type, message, traceback. The guest's own library cuts below these.
_ERROR_CHARS = (1_000, 8_000, 50_000)
_ENDED = "the cell of this call has ended"
_TOO_WIDE = (
    f"the prompt takes more than the {LARGEST_CALL >> 20} MiB that the engine has for it: one character "
    "outside of Latin-1 makes all of them take 2 or 4 bytes"
)


class Accepted(NamedTuple):
    """What an accepted message leads to."""

    to_engine: FromShim | None
    to_guest: Reply | ToolReply | None = None


class MessageRules:
    """The rules for one guest, with the state that they need."""

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._ready = False
        self._last_cell = 0
        self._files: dict[int, int] = {}
        self._lists: dict[int, int] = {}
        self._dropped = 0
        self.calls = PendingCalls(limits)
        self.cell: Cell | None = None

    @property
    def output_exceeded(self) -> bool:
        """Whether the running cell wrote too much."""
        most, cell = self._limits.output_bytes, self.cell
        return cell is not None and (cell.output[1] > most or cell.output[2] > most)

    def execute(self, number: int, timeout: float, now: float) -> None:
        """Start a cell.

        Raises:
            ValueError: another cell runs, or the number does not rise.
        """
        if self.cell is not None:
            raise ValueError(f"cell {number} cannot start: cell {self.cell.number} is running")
        if number <= self._last_cell:
            raise ValueError(f"cell {number} cannot start: its number must be above {self._last_cell}")
        self._last_cell = number
        self.cell = Cell(number, timeout, max(timeout, self._limits.wall_seconds), now)

    def expect(self, request: PutFile | GetFile | ListFiles) -> None:
        """Expect one answer to a file request."""
        match request:
            case PutFile():
                self._files[request.request] = 0
            case GetFile():
                self._files[request.request] = request.size
            case ListFiles():
                self._lists[request.request] = request.most

    def reply(self, reply: Reply | ToolReply, now: float) -> bool:
        """Take a reply of the engine; return False if its call is not pending."""
        if not self.calls.remove(reply.call):
            return False
        if self.cell is not None and not self.calls:
            self.cell.resume_clock(now)
        return True

    def accept(
        self, message: FromGuest, now: float, usage: Usage = NOT_MEASURED, *, refused_process: bool = False
    ) -> Accepted:
        """Return the message for the engine and the refusal for the guest; either may be None.

        Args:
            usage: of the cell, for ``Done``.
            refused_process: whether the cell reached the limit on processes, for ``Done``.

        Raises:
            Violation: the session must end.
        """
        match message:
            case Output():
                return Accepted(self._output(message))
            case Call():
                return Accepted(*self._call(message, now))
            case ToolCall():
                return Accepted(*self._tool_call(message, now))
            case Done():
                return Accepted(self._done(message, now, usage, refused_process=refused_process))
            case Final():
                return Accepted(self._final(message))
            case Display():
                return Accepted(self._display(message))
            case FileData() | FileList():
                return Accepted(self._answer(message))
            case Ready():
                return Accepted(self._ready_message(message))
            case _:
                raise Violation("a message that a guest may not send")

    def end_cell(
        self, outcome: Outcome, error: ErrorInfo | None, now: float, usage: Usage, *, death: str = ""
    ) -> CellEnd:
        """End the running cell; ``death`` says how its guest died."""
        cell = self.cell
        assert cell is not None
        # Read before the cell is removed, which it needs.
        truncated = self.output_exceeded
        self.cell = None
        self.calls.clear()
        dropped, self._dropped = self._dropped, 0
        return CellEnd(
            cell=cell.number,
            outcome=outcome,
            error=error,
            elapsed=max(0.0, now - cell.started),
            worker_wait=cell.worker_wait(now),
            truncated=truncated,
            state_lost=bool(death),
            dropped=dropped,
            detail=death,
            usage=usage,
        )

    def interrupt(self, outcome: Outcome, now: float) -> bool:
        """Start the grace of the running cell; return False if none runs or its grace has begun."""
        cell = self.cell
        if cell is None or cell.interrupted is not None:
            return False
        cell.interrupted = outcome
        cell.kill_at = now + self._limits.grace_seconds
        return True

    def _current(self, number: int) -> Cell | None:
        if number < 1 or number > self._last_cell:
            raise Violation("the guest sent a message for a cell that was never started")
        if self.cell is not None and self.cell.number == number:
            return self.cell
        # Not a violation: a thread may outlive its cell.
        self._dropped += 1
        return None

    def _ready_message(self, message: Ready) -> Ready:
        if self._ready:
            raise Violation("a second ready message")
        if message.version != protocol.VERSION:
            raise Violation("a ready message of another protocol version")
        self._ready = True
        return message

    def _output(self, message: Output) -> Output | None:
        cell = self._current(message.cell)
        if cell is None or not message.data:
            return None
        before = cell.output[message.stream]
        cell.output[message.stream] = before + len(message.data)
        # What fits still passes. `CellEnd.truncated` reports the rest.
        room = self._limits.output_bytes - before
        if room >= len(message.data):
            return message
        return Output(message.cell, message.stream, message.data[:room]) if room > 0 else None

    def _display(self, message: Display) -> Display | None:
        cell = self._current(message.cell)
        if cell is None:
            return None
        # The guest's library keeps these limits. Only forged frames break them.
        forms = [*message.images.values(), *(text.encode() for text in message.text.values())]
        cell.displays += 1
        cell.display_bytes += sum(map(len, forms))
        if not forms or cell.displays > protocol.MAX_DISPLAYS:
            raise Violation("an empty display, or too many")
        if cell.display_bytes > self._limits.display_bytes:
            raise Violation("displays larger than the guest's library sends")
        return message

    def _call(self, message: Call, now: float) -> tuple[Call | None, Reply | None]:
        self.calls.take_number(message.call)
        check_prompts(message.prompts, self._limits)
        cell = self._current(message.cell)
        if cell is None or cell.interrupted is not None:
            refused = CallError("cancelled", _ENDED)
            return None, Reply(message.call, [refused] * len(message.prompts))
        cost = prompts_cost(message.prompts)
        if cost > LARGEST_CALL:
            return None, Reply(message.call, [CallError("too_long", _TOO_WIDE)] * len(message.prompts))
        self.calls.add(message.call, len(message.prompts), cost)
        cell.pause_clock(now)
        return message, None

    def _tool_call(self, message: ToolCall, now: float) -> tuple[ToolCall | None, ToolReply | None]:
        self.calls.take_number(message.call)
        if len(message.arguments) > protocol.TOOL_ARGUMENT_BYTES:
            raise Violation("arguments longer than the guest's library sends")
        if not 0 <= message.tool < self._limits.tools:
            raise Violation("the guest called a tool that does not exist")
        cell = self._current(message.cell)
        if cell is None or cell.interrupted is not None:
            return None, ToolReply(message.call, ToolFailure("cancelled", _ENDED))
        self.calls.add(message.call, 1, tool_cost(message.arguments))
        cell.pause_clock(now)
        return message, None

    def _final(self, message: Final) -> Final | None:
        cell = self._current(message.cell)
        if cell is None:
            return None
        if cell.answered:
            raise Violation("a second answer in one cell")
        answer = message.answer
        if sys.getsizeof(answer) > self._limits.answer_memory or len(answer) > protocol.ANSWER_BYTES:
            raise Violation("an answer longer than the guest's library sends")
        cell.answered = True
        return message

    def _done(self, message: Done, now: float, usage: Usage, *, refused_process: bool) -> CellEnd:
        cell = self._current(message.cell)
        if cell is None:
            raise Violation("a second end of one cell")
        error = message.error
        if error is not None:
            texts = (error.type, error.message, error.traceback)
            if any(len(text) > most for text, most in zip(texts, _ERROR_CHARS, strict=True)):
                raise Violation("an error longer than the guest's library sends")
        outcome = cell.interrupted or (Outcome.USER_ERROR if error else Outcome.OK)
        if cell.interrupted is None and self.output_exceeded:
            outcome = Outcome.OUTPUT_LIMIT
        # What code makes of a refused fork(2) is an error of its own.
        if outcome is Outcome.USER_ERROR and refused_process:
            outcome = Outcome.RESOURCE_LIMIT
        end = self.end_cell(outcome, error, now, usage)
        return structs.replace(end, detail=_reason(cell, now)) if outcome is Outcome.TIMEOUT else end

    def _answer(self, message: FileData | FileList) -> FileData | FileList:
        if isinstance(message, FileData):
            most, count = self._files.pop(message.request, None), len(message.data)
        else:
            most, count = self._lists.pop(message.request, None), len(message.files)
            if sum(len(file.path) for file in message.files) > protocol.LISTING_CHARS:
                raise Violation("a list longer than the guest's library sends")
        if most is None:
            raise Violation("an answer without a request")
        if count > most:
            raise Violation("a file or a list larger than requested")
        return message


def _reason(cell: Cell, now: float) -> str:
    # Of the two clocks, the one without waits mostly ends first.
    if now - cell.started - cell.worker_wait(now) >= cell.timeout:
        return f"stopped after {cell.timeout:g} s; do less in one cell, or give a longer timeout"
    return f"stopped after {cell.wall_seconds:g} s, waits for replies included; do less in one cell"
