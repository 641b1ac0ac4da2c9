"""The shim's judgement of a guest, without I/O: what may come when, what counts against which limit, whose clock runs.

Times are seconds of one monotonic clock, handed in. Nothing here trusts a number that a guest sent.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from . import protocol
from .protocol import (
    Call,
    CallError,
    CellEnd,
    Display,
    Done,
    FileData,
    FileList,
    Final,
    FromGuest,
    GetFile,
    ListFiles,
    Outcome,
    Output,
    PutFile,
    Ready,
    ReplExit,
    Reply,
    SessionLimits,
    ToolCall,
    ToolFailure,
    ToolReply,
    Usage,
    Violation,
)

_PENDING_BYTES = 64 << 20
_ANSWER_CHARS = 8 << 20
_ERROR_CHARS = (1_000, 8_000, 50_000)  # type, message, traceback; the guest's own library cuts below these
_ENDED = "the cell of this call has ended"


@dataclass(slots=True)
class Cell:
    """A cell that runs. Its clock stands still while calls are pending."""

    number: int
    timeout: float
    wall_seconds: float
    started: float
    waited: float = 0.0
    waiting_since: float | None = None
    answered: bool = False
    output: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    displays: int = 0
    display_bytes: int = 0
    interrupted: Outcome | None = None
    kill_at: float | None = None

    def worker_wait(self, now: float) -> float:
        """Seconds that the cell has waited for replies."""
        return self.waited + (now - self.waiting_since if self.waiting_since is not None else 0.0)

    def deadline(self) -> float:
        """When to act next: the timeout, which does not count waits, or the limit with them; or the end of the grace."""
        if self.kill_at is not None:
            return self.kill_at
        latest = self.started + self.wall_seconds
        if self.waiting_since is not None:
            return latest
        return min(latest, self.started + self.timeout + self.waited)


class Guard:
    """The state of one guest's session. ``accept`` takes what the guest said and returns what the engine may hear."""

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._ready = False
        self._last_cell = 0
        self._last_call = 0
        self._pending: dict[int, tuple[int, int]] = {}
        self._pending_total = (0, 0)
        self._files: dict[int, int] = {}
        self._lists: dict[int, int] = {}
        self._allowance = limits.calls_per_second
        self._allowance_at = 0.0
        self._dropped = 0
        self.cell: Cell | None = None

    @property
    def has_enough_pending(self) -> bool:
        """Whether so much waits for workers that the guest is not to be read until some of it is answered."""
        if self.cell is not None and self.cell.interrupted is not None:
            return False
        prompts, size = self._pending_total
        return prompts >= self._limits.pending_calls or size >= _PENDING_BYTES

    def quiet_until(self, now: float) -> float | None:
        """Until when the guest is not to be read, since it calls too often; None where it may speak.

        A bucket of one second's calls, refilled all the time: nothing is refused, the guest just waits.
        """
        rate = self._limits.calls_per_second
        self._allowance = min(rate, self._allowance + (now - self._allowance_at) * rate)
        self._allowance_at = now
        return None if self._allowance >= 0 else now - self._allowance / rate

    def execute(self, number: int, timeout: float, now: float) -> None:
        """The engine starts a cell."""
        if self.cell is not None or number <= self._last_cell:
            raise ValueError(f"cell {number} while cell {self._last_cell} is the last")
        self._last_cell = number
        self.cell = Cell(number, timeout, max(timeout, self._limits.wall_seconds), now)

    def ask(self, question: PutFile | GetFile | ListFiles) -> None:
        """The engine asks about files, and waits for one answer."""
        match question:
            case PutFile():
                self._files[question.request] = 0
            case GetFile():
                self._files[question.request] = question.size
            case ListFiles():
                self._lists[question.request] = question.most

    def _answer(self, message: FileData | FileList) -> list[protocol.FromShim]:
        if isinstance(message, FileData):
            most, much = self._files.pop(message.request, None), len(message.data)
        else:
            most, much = self._lists.pop(message.request, None), len(message.files)
            if sum(len(file.path) for file in message.files) > protocol.LISTING_CHARS:
                raise Violation("more of a list than the guest's library sends")
        if most is None:
            raise Violation("an answer that nobody asked for")
        if much > most:
            raise Violation("more of a file, or of files, than was asked for")
        return [message]

    def reply(self, reply: Reply | ToolReply, now: float) -> bool:
        """The engine answers a call; False where nobody waits for it any more."""
        if self._pending.pop(reply.call, None) is None:
            return False
        self._count_pending()
        cell = self.cell
        if cell is not None and not self._pending and cell.waiting_since is not None:
            cell.waited += now - cell.waiting_since
            cell.waiting_since = None
        return True

    def accept(
        self,
        message: FromGuest,
        now: float,
        usage: Usage = protocol.NOT_MEASURED,
        *,
        refused_a_process: bool = False,
    ) -> tuple[list[protocol.FromShim], Reply | ToolReply | None]:
        """Judge a message. What the cell used is told beside its ``Done``.

        Returns:
            what goes to the engine, and what goes straight back to the guest.

        Raises:
            Violation: the session is over.
        """
        match message:
            case Ready():
                if self._ready or message.version != protocol.VERSION:
                    raise Violation("ready said twice, or of another version")
                self._ready = True
                return [message], None
            case Output():
                return self._output(message), None
            case Display():
                return self._display(message), None
            case Call():
                return self._call(message, now)
            case Final():
                return self._final(message), None
            case Done():
                return self._done(message, now, usage, refused_a_process=refused_a_process), None
            case FileData() | FileList():
                return self._answer(message), None
            case ToolCall():
                return self._tool_call(message, now)
            case _:
                raise Violation("a message that only the shim may act on")

    def end_cell(
        self, outcome: Outcome, error: protocol.ErrorInfo | None, now: float, usage: Usage, *, died: str = ""
    ) -> CellEnd:
        """Close the running cell with this verdict; ``died`` says how, where the guest died with it."""
        cell = self.cell
        assert cell is not None
        self.cell = None
        self._pending.clear()
        self._count_pending()
        dropped, self._dropped = self._dropped, 0
        waited = cell.worker_wait(now)
        return CellEnd(
            cell=cell.number,
            outcome=outcome,
            error=error,
            elapsed=max(0.0, now - cell.started),
            worker_wait=waited,
            truncated=any(size > self._limits.output_bytes for size in cell.output.values()),
            state_lost=bool(died),
            dropped=dropped,
            detail=died,
            usage=usage,
        )

    def interrupt(self, outcome: Outcome, now: float) -> None:
        """The running cell shall stop, and gets the grace to do so."""
        cell = self.cell
        assert cell is not None
        if cell.interrupted is None:
            cell.interrupted = outcome
            cell.kill_at = now + self._limits.grace_seconds

    def _count_pending(self) -> None:
        counts = self._pending.values()
        self._pending_total = sum(prompts for prompts, _ in counts), sum(size for _, size in counts)

    def _is_current(self, number: int) -> Cell | None:
        """The running cell if the message is of it; None (and counted) if it is late."""
        if number < 1 or number > self._last_cell:
            raise Violation("a message of a cell that never was")
        if self.cell is not None and self.cell.number == number:
            return self.cell
        self._dropped += 1
        return None

    def _output(self, message: Output) -> list[protocol.FromShim]:
        cell = self._is_current(message.cell)
        if cell is None or not message.data:
            return []
        before = cell.output[message.stream]
        cell.output[message.stream] = before + len(message.data)
        room = self._limits.output_bytes - before
        if room >= len(message.data):
            return [message]
        return [Output(message.cell, message.stream, message.data[:room])] if room > 0 else []

    def _display(self, message: Display) -> list[protocol.FromShim]:
        cell = self._is_current(message.cell)
        if cell is None:
            return []
        forms = [*message.images.values(), *(text.encode() for text in message.text.values())]
        cell.displays += 1
        cell.display_bytes += sum(map(len, forms))
        if not forms or cell.displays > protocol.MAX_DISPLAYS:
            raise Violation("a display of nothing, or one too many")
        if cell.display_bytes > self._limits.display_bytes:
            raise Violation("displays larger than the guest's library sends")
        return [message]

    @property
    def output_exceeded(self) -> bool:
        """Whether the running cell wrote more than it may."""
        cell = self.cell
        return cell is not None and any(size > self._limits.output_bytes for size in cell.output.values())

    def _call(self, message: Call, now: float) -> tuple[list[protocol.FromShim], Reply | None]:
        self._take_number(message.call)
        if not 0 < len(message.prompts) <= self._limits.batch:
            raise Violation("a call with no prompt or too many")
        cell = self._is_current(message.cell)
        if cell is None or cell.interrupted is not None:
            return [], _refuse(message, CallError("cancelled", _ENDED))
        for prompt in message.prompts:
            # A character is at most four bytes; the exact size is counted only where it can matter.
            if (
                len(prompt) * 4 > self._limits.prompt_bytes
                and len(prompt.encode()) > self._limits.prompt_bytes
            ):
                raise Violation("a prompt longer than the guest's library sends")
        self._await_reply(cell, message.call, len(message.prompts), sum(map(len, message.prompts)), now)
        return [message], None

    def _tool_call(self, message: ToolCall, now: float) -> tuple[list[protocol.FromShim], ToolReply | None]:
        self._take_number(message.call)
        if len(message.arguments) > protocol.TOOL_ARGUMENT_BYTES:
            raise Violation("arguments longer than the guest's library sends")
        if not 0 <= message.tool < self._limits.tools:
            raise Violation("a call of a tool that does not exist")
        cell = self._is_current(message.cell)
        if cell is None or cell.interrupted is not None:
            return [], ToolReply(message.call, ToolFailure("cancelled", _ENDED))
        # Counted by what may come back, which the guest need not read: it is the larger.
        self._await_reply(cell, message.call, 1, protocol.TOOL_RESULT_BYTES, now)
        return [message], None

    def _take_number(self, call: int) -> None:
        """Every call, of a worker or a tool, has a number of its own and takes its share of the rate."""
        if call <= self._last_call or call >= 1 << 62:
            raise Violation("a call's number was used before")
        self._last_call = call
        self._allowance -= 1

    def _await_reply(self, cell: Cell, call: int, count: int, size: int, now: float) -> None:
        self._pending[call] = count, size
        self._count_pending()
        if cell.waiting_since is None:
            cell.waiting_since = now

    def _final(self, message: Final) -> list[protocol.FromShim]:
        cell = self._is_current(message.cell)
        if cell is None:
            return []
        if cell.answered:
            raise Violation("a second answer in one cell")
        if len(message.answer) > _ANSWER_CHARS:
            raise Violation("an answer longer than the guest's library sends")
        cell.answered = True
        return [message]

    def _done(
        self, message: Done, now: float, usage: Usage, *, refused_a_process: bool
    ) -> list[protocol.FromShim]:
        cell = self._is_current(message.cell)
        if cell is None:
            raise Violation("a second end of one cell")
        error = message.error
        if error is not None and any(
            len(text) > most
            for text, most in zip((error.type, error.message, error.traceback), _ERROR_CHARS, strict=True)
        ):
            raise Violation("an error longer than the guest's library sends")
        outcome = cell.interrupted or (Outcome.USER_ERROR if message.error else Outcome.OK)
        if outcome in (Outcome.OK, Outcome.USER_ERROR) and self.output_exceeded:
            outcome = Outcome.OUTPUT_LIMIT
        if outcome is Outcome.USER_ERROR and refused_a_process:
            outcome = Outcome.RESOURCE_LIMIT
        return [self.end_cell(outcome, message.error, now, usage)]


def death(last_words: ReplExit | None) -> tuple[Outcome, str]:
    """How a guest died whose stream has ended, by what its init said last; the limits know better where one was hit."""
    if last_words is None:
        return Outcome.CRASHED, "the sandbox closed its stream or its init died"
    if last_words.hung_up:
        return Outcome.CRASHED, "the interpreter closed its stream"
    status = last_words.status
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        if number == signal.SIGKILL:
            return Outcome.KILLED, "the interpreter was killed (SIGKILL)"
        if number in (signal.SIGXCPU, signal.SIGXFSZ):
            return Outcome.RESOURCE_LIMIT, f"the interpreter was ended by {name}"
        return Outcome.CRASHED, f"the interpreter was ended by {name}"
    return Outcome.CRASHED, f"the interpreter left with status {os.waitstatus_to_exitcode(status)}"


def _refuse(call: Call, error: CallError) -> Reply:
    return Reply(call.call, [error] * len(call.prompts))
