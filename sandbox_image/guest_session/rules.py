"""The rules for a guest's messages: which may come when, and what counts against which limit.

Times are seconds of one monotonic clock. No number that a guest sent is trusted.
"""

from __future__ import annotations

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
from .calls import PendingCalls
from .cell import Cell

_ANSWER_CHARS = 8 << 20
# Type, message, traceback. The guest's own library cuts below these.
_ERROR_CHARS = (1_000, 8_000, 50_000)
_ENDED = "the cell of this call has ended"


class MessageRules:
    """The state of one guest's session. ``accept`` checks a message and returns what passes.

    Attributes:
        cell: the running cell.
        calls: the calls without a reply.
    """

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
        """Whether the running cell wrote more than it may."""
        most, cell = self._limits.output_bytes, self.cell
        return cell is not None and (cell.output[1] > most or cell.output[2] > most)

    def execute(self, number: int, timeout: float, now: float) -> None:
        """Begin a cell of the engine's."""
        if self.cell is not None or number <= self._last_cell:
            raise ValueError(f"cell {number} while cell {self._last_cell} is the last")
        self._last_cell = number
        self.cell = Cell(number, timeout, max(timeout, self._limits.wall_seconds), now)

    def ask(self, question: PutFile | GetFile | ListFiles) -> None:
        """Expect one answer to a question about files."""
        match question:
            case PutFile():
                self._files[question.request] = 0
            case GetFile():
                self._files[question.request] = question.size
            case ListFiles():
                self._lists[question.request] = question.most

    def reply(self, reply: Reply | ToolReply, now: float) -> bool:
        """Take the engine's answer of a call. Return False where the guest no longer waits for it."""
        if not self.calls.answer(reply.call):
            return False
        if self.cell is not None and not self.calls:
            self.cell.resume_clock(now)
        return True

    def accept(
        self, message: FromGuest, now: float, usage: Usage = NOT_MEASURED, *, refused_process: bool = False
    ) -> tuple[FromShim | None, Reply | ToolReply | None]:
        """Check a message. ``usage`` and ``refused_process`` are of the cell, for its ``Done``.

        Returns:
            the message for the engine, and a refusal for the guest.

        Raises:
            Violation: the session is over.
        """
        match message:
            case Output():
                return self._output(message), None
            case Call():
                return self._call(message, now)
            case ToolCall():
                return self._tool_call(message, now)
            case Done():
                return self._done(message, now, usage, refused_process=refused_process), None
            case Final():
                return self._final(message), None
            case Display():
                return self._display(message), None
            case FileData() | FileList():
                return self._answer(message), None
            case Ready():
                if self._ready or message.version != protocol.VERSION:
                    raise Violation("ready sent twice, or of another version")
                self._ready = True
                return message, None
            case _:
                raise Violation("a message that only the shim may act on")

    def end_cell(
        self, outcome: Outcome, error: ErrorInfo | None, now: float, usage: Usage, *, death: str = ""
    ) -> CellEnd:
        """Close the running cell with this verdict. ``death`` is the text for a guest that died with it."""
        cell = self.cell
        assert cell is not None
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
        """Give the running cell the grace to stop. Return False where there is none, or it was interrupted before."""
        cell = self.cell
        if cell is None or cell.interrupted is not None:
            return False
        cell.interrupted = outcome
        cell.kill_at = now + self._limits.grace_seconds
        return True

    def _current(self, number: int) -> Cell | None:
        """Return the running cell if the message is of it. Count a message of an earlier one."""
        if number < 1 or number > self._last_cell:
            raise Violation("a message of a cell that never was")
        if self.cell is not None and self.cell.number == number:
            return self.cell
        self._dropped += 1
        return None

    def _output(self, message: Output) -> Output | None:
        cell = self._current(message.cell)
        if cell is None or not message.data:
            return None
        before = cell.output[message.stream]
        cell.output[message.stream] = before + len(message.data)
        room = self._limits.output_bytes - before
        if room >= len(message.data):
            return message
        return Output(message.cell, message.stream, message.data[:room]) if room > 0 else None

    def _display(self, message: Display) -> Display | None:
        cell = self._current(message.cell)
        if cell is None:
            return None
        forms = [*message.images.values(), *(text.encode() for text in message.text.values())]
        cell.displays += 1
        cell.display_bytes += sum(map(len, forms))
        if not forms or cell.displays > protocol.MAX_DISPLAYS:
            raise Violation("a display of nothing, or one too many")
        if cell.display_bytes > self._limits.display_bytes:
            raise Violation("displays larger than the guest's library sends")
        return message

    def _call(self, message: Call, now: float) -> tuple[Call | None, Reply | None]:
        self.calls.take_number(message.call)
        if not 0 < len(message.prompts) <= self._limits.batch:
            raise Violation("a call with no prompt or too many")
        cell = self._current(message.cell)
        if cell is None or cell.interrupted is not None:
            refused = CallError("cancelled", _ENDED)
            return None, Reply(message.call, [refused] * len(message.prompts))
        most = self._limits.prompt_bytes
        for prompt in message.prompts:
            # A character is at most four bytes. Only a long prompt has to be encoded to be measured.
            if len(prompt) * 4 > most and len(prompt.encode()) > most:
                raise Violation("a prompt longer than the guest's library sends")
        self.calls.add(message.call, len(message.prompts), sum(map(len, message.prompts)))
        cell.pause_clock(now)
        return message, None

    def _tool_call(self, message: ToolCall, now: float) -> tuple[ToolCall | None, ToolReply | None]:
        self.calls.take_number(message.call)
        if len(message.arguments) > protocol.TOOL_ARGUMENT_BYTES:
            raise Violation("arguments longer than the guest's library sends")
        if not 0 <= message.tool < self._limits.tools:
            raise Violation("a call of a tool that does not exist")
        cell = self._current(message.cell)
        if cell is None or cell.interrupted is not None:
            return None, ToolReply(message.call, ToolFailure("cancelled", _ENDED))
        # Counted by its largest result, which the guest may leave unread.
        self.calls.add(message.call, 1, protocol.TOOL_RESULT_BYTES)
        cell.pause_clock(now)
        return message, None

    def _final(self, message: Final) -> Final | None:
        cell = self._current(message.cell)
        if cell is None:
            return None
        if cell.answered:
            raise Violation("a second answer in one cell")
        if len(message.answer) > _ANSWER_CHARS:
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
        return self.end_cell(outcome, error, now, usage)

    def _answer(self, message: FileData | FileList) -> FileData | FileList:
        if isinstance(message, FileData):
            most, count = self._files.pop(message.request, None), len(message.data)
        else:
            most, count = self._lists.pop(message.request, None), len(message.files)
            if sum(len(file.path) for file in message.files) > protocol.LISTING_CHARS:
                raise Violation("more of a list than the guest's library sends")
        if most is None:
            raise Violation("an answer that nobody asked for")
        if count > most:
            raise Violation("more of a file, or of files, than was asked for")
        return message
