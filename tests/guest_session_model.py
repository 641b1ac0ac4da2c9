"""A reference model of a guest session, written apart from the product's code."""

from __future__ import annotations

import sys

from supdist.sandbox_image import protocol
from supdist.sandbox_image.protocol import (
    Call,
    CallError,
    CellEnd,
    Display,
    Done,
    FileData,
    FileList,
    Final,
    Interrupt,
    Outcome,
    Output,
    Ready,
    ReplExit,
    Reply,
    ToolCall,
    ToolFailure,
    ToolReply,
)

# Small, so that a few steps reach them. Floats hold multiples of a quarter exactly.
LIMITS = protocol.SessionLimits(
    output_bytes=1024,
    result_bytes=4096,
    display_bytes=1024,
    frame_bytes=1 << 20,
    prompt_bytes=1024,
    batch=4,
    pending_calls=4,
    calls_per_second=4.0,
    wall_seconds=10.0,
    grace_seconds=1.0,
    tools=2,
)
OF_INIT = (FileData, FileList, ReplExit)
ENDED = "the cell of this call has ended"

# The stream and the message.
Sent = tuple[str, protocol.FromShim | protocol.ToGuest]


# Half of a result, and the header of a string.
ANSWER_MEMORY = 2048 + 128


def memory(text: str) -> int:
    """Return the bytes of a string: each character takes 1, 2 or 4, as the widest does, beside a header."""
    widest = max(map(ord, text), default=0)
    width = 1 if widest < 256 else 2 if widest < 65536 else 4
    return sys.getsizeof(chr(widest)) - width + width * len(text) if text else sys.getsizeof("")


def display_size(display: Display) -> int:
    return sum(len(form.encode()) for form in display.text.values()) + sum(map(len, display.images.values()))


class Model:
    """What a guest may do, and what engine and guest get for it."""

    def __init__(self, *, two: bool) -> None:
        self.two = two
        self.now = 100.0
        self.is_ready = False
        # The cell that runs, or ran last.
        self.cell = 0
        self.is_running = False
        self.dropped = 0
        self.last_call = 0
        self.allowance = LIMITS.calls_per_second
        self.files: dict[int, int] = {}
        self.lists: dict[int, int] = {}
        self._reset(0.0)

    def _reset(self, timeout: float) -> None:
        self.started, self.timeout, self.waited = self.now, timeout, 0.0
        self.interrupted: Outcome | None = None
        self.interrupted_at = 0.0
        # Prompts of each call without a reply.
        self.pending: dict[int, int] = {}
        self.printed = {1: 0, 2: 0}
        self.shown: list[int] = []
        self.is_answered = False

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds if self.pending else 0.0
        self.allowance = min(LIMITS.calls_per_second, self.allowance + seconds * LIMITS.calls_per_second)

    def deadline(self) -> float:
        if self.interrupted is not None:
            return self.interrupted_at + LIMITS.grace_seconds
        latest = self.started + max(self.timeout, LIMITS.wall_seconds)
        return latest if self.pending else min(latest, self.started + self.timeout + self.waited)

    def may_read(self) -> bool:
        is_full = sum(self.pending.values()) >= LIMITS.pending_calls
        return self.allowance >= 0 and (not is_full or self.interrupted is not None)

    def execute(self, timeout: float) -> None:
        self.cell, self.is_running = self.cell + 1, True
        self._reset(timeout)

    def interrupt(self, outcome: Outcome) -> list[Sent]:
        if not self.is_running or self.interrupted is not None:
            return []
        self.interrupted, self.interrupted_at = outcome, self.now
        return [("init", Interrupt(self.cell))]

    def is_violation(self, source: str, message: protocol.FromGuest) -> bool:
        """Return whether the session must end for a message."""
        if self.two and isinstance(message, OF_INIT) != (source == "init"):
            return True
        if isinstance(message, Call | ToolCall) and not self.last_call < message.call < 1 << 62:
            return True
        # Pipes are read; a relay sends none that is empty.
        if isinstance(message, Output) and (self.two or not message.data):
            return True
        number = getattr(message, "cell", None)
        if number is not None and not 1 <= number <= self.cell:
            return True
        if number is not None:
            return self._is_violation_in_cell(message, is_current=self.is_running and number == self.cell)
        match message:
            case Ready():
                return self.is_ready or message.version != protocol.VERSION
            case FileData():
                return len(message.data) > self.files.get(message.request, -1)
            case FileList():
                return len(message.files) > self.lists.get(message.request, -1)
            case _:
                return False

    def _is_violation_in_cell(self, message: protocol.FromGuest, *, is_current: bool) -> bool:
        match message:
            case Call():
                sizes = [len(prompt.encode()) for prompt in message.prompts]
                is_long = max(sizes, default=0) > LIMITS.prompt_bytes
                # Before the state: a call that comes late is checked, too.
                return not 1 <= len(sizes) <= LIMITS.batch or is_long
            case ToolCall():
                return message.tool not in range(LIMITS.tools)
            case Final():
                is_long = memory(message.answer) > ANSWER_MEMORY
                return is_current and (self.is_answered or is_long)
            case Display():
                shown = [*self.shown, display_size(message)]
                is_much = sum(shown) > LIMITS.display_bytes or len(shown) > protocol.MAX_DISPLAYS
                return is_current and (is_much or not (message.text or message.images))
            case Done():
                return not is_current
            case _:
                return False

    def take(self, message: protocol.FromGuest) -> list[Sent]:
        """Take a message that is no violation; return what the session must send."""
        if isinstance(message, Call | ToolCall):
            self.last_call = message.call
            self.allowance -= 1
        number = getattr(message, "cell", None)
        if number is not None and not (self.is_running and number == self.cell):
            self.dropped += 1
            return self._refusal(message)
        if number is not None:
            return self._take_in_cell(message)
        match message:
            case Ready():
                self.is_ready = True
            case FileData():
                del self.files[message.request]
            case FileList():
                del self.lists[message.request]
            case _:
                return []
        return [("engine", message)]

    def _take_in_cell(self, message: protocol.FromGuest) -> list[Sent]:
        match message:
            case Call() | ToolCall():
                if self.interrupted is not None:
                    return self._refusal(message)
                self.pending[message.call] = len(message.prompts) if isinstance(message, Call) else 1
            case Output():
                return self.output(message)
            case Done():
                return [("engine", self.end(Outcome.USER_ERROR if message.error else Outcome.OK))]
            case Final():
                self.is_answered = True
            case Display():
                self.shown.append(display_size(message))
            case _:
                return []
        return [("engine", message)]

    def output(self, message: Output, *, has_ended: bool = False) -> list[Sent]:
        """Take output of the running cell."""
        room = max(0, LIMITS.output_bytes - self.printed[message.stream])
        self.printed[message.stream] += len(message.data)
        passed = message.data[:room]
        sends: list[Sent] = [("engine", Output(self.cell, message.stream, passed))] if passed else []
        if self.exceeded and not has_ended:
            sends += self.interrupt(Outcome.OUTPUT_LIMIT)
        return sends

    @property
    def exceeded(self) -> bool:
        """Whether a stream of the cell is over its limit."""
        return max(self.printed.values()) > LIMITS.output_bytes

    def reply(self, call: int) -> bool:
        """Return whether the guest gets a reply."""
        return self.pending.pop(call, None) is not None

    def end(self, outcome: Outcome, death: str = "") -> CellEnd:
        end = CellEnd(
            cell=self.cell,
            outcome=outcome if death else self.interrupted or outcome,
            error=None,
            elapsed=self.now - self.started,
            worker_wait=self.waited,
            truncated=self.exceeded,
            state_lost=bool(death),
            dropped=self.dropped,
            detail=death or self._reason(),
            usage=protocol.NOT_MEASURED,
        )
        self.is_running, self.dropped, self.pending, self.interrupted = False, 0, {}, None
        return end

    def _reason(self) -> str:
        # Without the waits for replies, or with them.
        if self.interrupted is not Outcome.TIMEOUT:
            return ""
        if self.now - self.started - self.waited >= self.timeout:
            return f"stopped after {self.timeout:g} s; do less in one cell, or give a longer timeout"
        wall = max(self.timeout, LIMITS.wall_seconds)
        return f"stopped after {wall:g} s, waits for replies included; do less in one cell"

    @staticmethod
    def _refusal(message: protocol.FromGuest) -> list[Sent]:
        match message:
            case Call():
                refused = CallError("cancelled", ENDED)
                return [("repl", Reply(message.call, [refused] * len(message.prompts)))]
            case ToolCall():
                return [("repl", ToolReply(message.call, ToolFailure("cancelled", ENDED)))]
            case _:
                return []
