"""Any course of a session, compared with a reference model after each step."""

from __future__ import annotations

from typing import Literal, NamedTuple

from guest_session_model import ANSWER_MEMORY, LIMITS, OF_INIT, Model, Sent, memory
from guest_session_support import FACTS
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Backlog, GuestSession, Measured, Send, Source
from supdist.sandbox_image.protocol import (
    Call,
    Display,
    Done,
    Execute,
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
    ToolReply,
)

# How often each is drawn. Hypothesis prefers both ends of a list: what ends the session is in its middle.
_FREQUENCIES = {
    "call": 80,
    **dict.fromkeys(("execute", "reply"), 60),
    **dict.fromkeys(("pipe", "final", "get", "list", "data", "listing", "ready"), 15),
    **dict.fromkeys(("interrupt", "closed_repl"), 5),
    **dict.fromkeys(("exit", "kill", "closed_init", "bytes"), 1),
    **dict.fromkeys(("done", "tick"), 40),
    **dict.fromkeys(("tool", "output", "display"), 30),
}
EVENTS = [event for event, times in _FREQUENCIES.items() for _ in range(times)]
OF_CELL = ("call", "tool", "output", "display", "final", "done")
# Those that fit few messages are drawn more often.
FAULTS = (
    *("future", "none", "huge", "many", "again", "unasked", "version"),
    *(["reused", "size"] * 2 + ["source", "tool"] * 5),
)
# About one message of twenty is wrong: not every fault fits every message.
FAULT = st.sampled_from([*[""] * 90, *["late"] * 7, *FAULTS, *[""] * 90])


class Step(NamedTuple):
    """One event, in terms that do not depend on the state."""

    event: str
    pick: int
    size: int
    fault: str
    passed: float


STEPS = st.builds(
    Step,
    st.sampled_from(EVENTS),
    st.integers(0, 7),
    st.sampled_from([0, 1, 300, 511, 512, 513, 1023, 1024]),
    FAULT,
    st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 2.0, 5.0]),
)


def text_of(size: int) -> str:
    """Return a text of so many bytes in UTF-8, and fewer characters."""
    return "é" * (size // 2) + "x" * (size % 2)


def answer_of(pick: int, size: int, *, over: bool) -> str:
    """Return an answer whose widest character takes 1, 2 or 4 bytes, at its limit or one above it."""
    last = ("x", "é", "€", "😀")[pick % 4]
    if not over and pick < 4:
        return "x" * (size // 4) + last
    fitting = 0
    while memory("x" * (fitting + 1) + last) <= ANSWER_MEMORY:
        fitting += 1
    return "x" * (fitting + over) + last


def pairs(sends: list[Send]) -> list[Sent]:
    """Return streams and messages, once each is checked to arrive as it is."""
    for send in sends:
        decode = protocol.decode_from_shim if send.to == "engine" else protocol.decode_to_guest
        assert decode(send.encoded()) == send.message
    return [(send.to, send.message) for send in sends]


class Course:
    """A session beside its model."""

    def __init__(self, *, two: bool) -> None:
        self.guest = GuestSession(LIMITS, has_two_streams=two)
        self.model = Model(two=two)
        self.request = 0

    def happen(self, step: Step) -> None:
        self.model.pass_time(step.passed)
        ending = self.guest.ending
        if step.event == "pipe":
            self.pipe(step)
        elif step.event in ("execute", "reply", "interrupt", "get", "list", "kill"):
            self.from_engine(step)
        elif step.event == "tick":
            self.tick()
        elif step.event in ("closed_repl", "closed_init"):
            self.closed("repl" if step.event == "closed_repl" else "init")
        else:
            self.from_guest(step)
        assert ending is None or self.guest.ending == ending, "the first end stays"
        self.compare()

    def compare(self) -> None:
        """The deadline, the pending calls and the rate are those of the model."""
        model, cell = self.model, self.guest.cell
        assert (cell is not None) == model.is_running
        if self.guest.ending is not None:
            return
        assert self.guest.may_read(model.now, Backlog()) == model.may_read()
        assert self.guest.may_process(model.now, Backlog()) == model.may_read()
        times = [self.guest.resume_at] if self.guest.resume_at is not None else []
        assert times == (
            [] if model.allowance >= 0 else [model.now - model.allowance / LIMITS.calls_per_second]
        )
        if cell is not None:
            assert cell.deadline() == model.deadline()
            assert cell.worker_wait(model.now) == model.waited
            times.append(model.deadline())
        assert self.guest.next_time() == min(times, default=None)

    def from_engine(self, step: Step) -> None:
        """Pass what the engine sends; after the end nothing is."""
        model, is_over = self.model, self.guest.ending is not None
        message, expected = self.engine_message(step)
        if message is None:
            return
        assert pairs(self.guest.from_engine(message, model.now)) == ([] if is_over else expected)
        if step.event == "kill" and not is_over:
            assert self.guest.ending == protocol.Exit(Outcome.KILLED, "killed by the engine")

    def engine_message(self, step: Step) -> tuple[protocol.ToShim | None, list[Sent]]:
        """Return a message of the engine, and what the session must send for it."""
        model, is_over = self.model, self.guest.ending is not None
        match step.event:
            case "execute":
                timeout = 20.0 if step.pick == 0 else 5.0
                message = Execute(model.cell + 1, "x", timeout)
                if model.is_running:
                    return None, []
                if not is_over:
                    model.execute(timeout)
                return message, [("repl", message)]
            case "reply":
                known = [*model.pending] if step.fault != "unasked" else []
                call = known[step.pick % len(known)] if known else model.last_call + step.pick - 3
                reply = Reply(call, ["x"]) if step.pick % 2 else ToolReply(call, b"1")
                return reply, [("repl", reply)] if not is_over and model.reply(call) else []
            case "interrupt":
                cell = model.cell - (step.fault == "late")
                is_running = not is_over and cell == model.cell
                return Interrupt(cell), model.interrupt(Outcome.KILLED) if is_running else []
            case "kill":
                return protocol.Kill(), []
            case _:
                self.request += 1
                most = step.pick
                if step.event == "list":
                    message = protocol.ListFiles(self.request, most)
                    self.model.lists[self.request] = most
                else:
                    message = protocol.GetFile(self.request, "a", 0, most)
                    self.model.files[self.request] = most
                return message, [("init", message)]

    def pipe(self, step: Step) -> None:
        """Output that the driver reads is passed to its limit, even after the end."""
        stream: Literal[1, 2] = 1 if step.pick % 2 else 2
        is_over = self.guest.ending is not None
        message = Output(self.model.cell, stream, b"o" * step.size)
        expected = self.model.output(message, has_ended=is_over) if self.model.is_running else []
        assert pairs(self.guest.output(stream, message.data, self.model.now)) == expected

    def tick(self) -> None:
        """A cell is interrupted at its deadline, and the session ends after the grace."""
        model, is_over = self.model, self.guest.ending is not None
        is_due = model.is_running and not is_over and model.now >= model.deadline()
        reason = model.interrupted
        expected = model.interrupt(Outcome.TIMEOUT) if is_due else []
        assert pairs(self.guest.tick(model.now)) == expected
        if is_due and reason is not None:
            assert self.guest.ending == protocol.Exit(reason, "did not stop when interrupted")
        elif not is_over:
            assert self.guest.ending is None

    def closed(self, source: Source) -> None:
        is_over = self.guest.ending is not None
        hung_up: list[Sent] = [("init", protocol.HungUp())]
        assert pairs(self.guest.closed(source)) == (hung_up if source == "repl" and not is_over else [])
        assert (self.guest.ending is not None) == (is_over or source == "init")

    def from_guest(self, step: Step) -> None:
        """A violation ends the session; for another message, it sends what the model does."""
        message = self.guest_message(step)
        if message is None or (self.guest.ending is None and not self.model.may_read()):
            return
        is_swapped = step.fault == "source" or (not self.model.two and step.pick % 2 == 0)
        source: Source = "init" if isinstance(message, OF_INIT) != is_swapped else "repl"
        is_bytes, is_over = isinstance(message, bytes), self.guest.ending is not None
        self.guest.from_guest(source, [message if isinstance(message, bytes) else protocol.encode(message)])
        assert self.guest.has_frames == (not is_over)
        assert not self.guest.may_read(self.model.now, Backlog()), "a frame waits"
        if is_over:
            return
        sends = self.guest.process_frame(self.model.now)
        if self.guest.unmeasured is not None:
            assert sends == []
            sends = self.guest.measured(Measured(), self.model.now)
        if isinstance(message, bytes) or self.model.is_violation(source, message):
            assert sends == []
            assert self.guest.ending is not None, "a violation is not accepted"
            assert self.guest.ending.outcome is Outcome.PROTOCOL_VIOLATION
            assert is_bytes == self.guest.ending.detail.startswith("a frame that holds no")
            return
        assert pairs(sends) == self.model.take(message)
        assert (self.guest.ending is not None) == isinstance(message, ReplExit)

    def guest_message(self, step: Step) -> protocol.FromGuest | bytes | None:
        """Return a message that fits the state, but for its fault; None if none fits."""
        model, fault = self.model, step.fault
        if step.event in OF_CELL:
            # Late messages have a fault of their own.
            return self.cell_message(step) if model.is_running or fault else None
        match step.event:
            case "data":
                request, most = self.asked(model.files, step)
                return FileData(request, b"x" * most, None) if request else None
            case "listing":
                request, most = self.asked(model.lists, step)
                entry = protocol.FileEntry("a", 1)
                return FileList(request, [entry] * most, more=False) if request else None
            case "ready":
                is_wrong = fault == "version"
                return (
                    Ready(protocol.VERSION - is_wrong, FACTS)
                    if not model.is_ready or fault == "again"
                    else None
                )
            case "exit":
                return ReplExit((0, 9, 256)[step.pick % 3], hung_up=False)
            case _:
                return b"\xc0"

    def cell_message(self, step: Step) -> protocol.FromGuest | None:
        """Return a message of the cell that runs, but for its fault."""
        model, fault = self.model, step.fault
        cell = {"future": model.cell + 1, "none": 0, "late": model.cell - 1}.get(fault, model.cell)
        number = {"reused": model.last_call, "huge": 1 << 62}.get(fault, model.last_call + 1 + step.pick % 2)
        match step.event:
            case "call":
                size = min(step.size, LIMITS.prompt_bytes) + (fault == "size") * 1024
                count = (0 if step.pick % 2 else LIMITS.batch + 1) if fault == "many" else 1 + step.pick % 4
                return Call(number, cell, [text_of(size)] * count)
            case "tool":
                tool = (-1, LIMITS.tools)[step.pick % 2] if fault == "tool" else step.pick % LIMITS.tools
                return ToolCall(number, cell, tool, b"x" * step.size)
            case "output":
                # Where pipes are read, a frame of output ends the session, as an empty one does elsewhere.
                if model.two and fault not in ("size", "source"):
                    return None
                size = 0 if fault == "size" else max(1, step.size)
                return Output(cell, 1 if step.pick % 2 else 2, b"x" * size)
            case "display":
                room = LIMITS.display_bytes - sum(model.shown)
                # One of four takes all that is left: the next may show no byte.
                size = room + 1 if fault == "size" else room if step.pick % 4 == 3 else min(step.size, room)
                if fault == "many":
                    return Display(cell, {}, {})
                if step.pick % 2:
                    return Display(cell, {"text/plain": text_of(size)}, {})
                return Display(cell, {}, {"image/png": b"x" * size})
            case "final":
                answer = answer_of(step.pick, step.size, over=fault == "size")
                return None if model.is_answered and fault != "again" else Final(cell, answer)
            case _:
                return Done(cell, None)

    def asked(self, requests: dict[int, int], step: Step) -> tuple[int, int]:
        """Return a request and the size of its answer; 0 if there is none."""
        if step.fault == "unasked":
            return self.request + 1, 0
        if not requests:
            return 0, 0
        request = [*requests][step.pick % len(requests)]
        return request, requests[request] + (step.fault == "size")

    def finish(self) -> None:
        """A cell that runs at the end of its guest ends once."""
        self.guest.end(Outcome.KILLED, "the test is over")
        assert self.guest.ending is not None
        ending, expected = self.guest.ending, list[Sent]()
        sends = pairs(self.guest.end_cell(self.model.now, protocol.NOT_MEASURED))
        if self.model.is_running:
            if ending.outcome is Outcome.PROTOCOL_VIOLATION:
                # No law says whether the frame that is the violation counts as dropped.
                self.model.dropped = max(getattr(message, "dropped", 0) for _, message in sends)
            expected.append(("engine", self.model.end(ending.outcome, ending.detail)))
        assert sends == expected
        assert self.guest.end_cell(self.model.now, protocol.NOT_MEASURED) == []


# Lists are short when drawn without a least size.
@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, min_size=25, max_size=80), st.booleans())
def test_a_session_follows_its_model(steps: list[Step], two: bool) -> None:
    course = Course(two=two)
    course.happen(Step("execute", 1, 0, "", 0.0))
    for step in steps:
        course.happen(step)
    course.finish()
