from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.engine import SandboxConfig
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Backlog, GuestSession, Measured, Send
from supdist.sandbox_image.guest_session.rules import MessageRules
from supdist.sandbox_image.protocol import (
    Call,
    CellEnd,
    Display,
    Done,
    ErrorInfo,
    Execute,
    Final,
    Interrupt,
    Outcome,
    Output,
    Ready,
    Reply,
    ToolCall,
    ToolFailure,
    ToolReply,
    Violation,
)

FACTS = protocol.Facts({}, 65534, 0, True, True, [], False)
CONFIG = SandboxConfig.model_validate(
    {"output": "1KiB", "display": "1KiB", "prompt": "1KiB", "batch": 4, "pending_calls": 2, "grace": 1.0}
)


class Driver:
    """A session whose guest has one stream, driven as a shim or a server drives it.

    Attributes:
        interrupts: the cells that were interrupted.
    """

    def __init__(self, limits: protocol.SessionLimits) -> None:
        self.session = GuestSession(limits, has_two_streams=False)
        self.interrupts: list[int] = []

    def execute(self, cell: int, timeout: float, now: float) -> None:
        order = Execute(cell, "code", timeout)
        assert self.session.from_engine(order, now) == [Send("repl", order)]

    def interrupt(self, now: float) -> None:
        assert self.session.cell is not None
        self._take(self.session.from_engine(Interrupt(self.session.cell.number), now))

    def reply(self, reply: Reply | ToolReply, now: float) -> bool:
        """Whether the guest gets it."""
        return self.session.from_engine(reply, now) == [Send("repl", reply)]

    def ask(self, question: protocol.PutFile | protocol.GetFile | protocol.ListFiles) -> None:
        assert self.session.from_engine(question, 100) == [Send("init", question)]

    def accept(
        self, message: protocol.FromGuest, now: float, facts: Measured | None = None
    ) -> tuple[list[protocol.FromShim], Reply | ToolReply | None]:
        """What the engine gets, and what the guest gets back at once. A breach is raised."""
        self.session.from_guest("init", [protocol.encode(message)])
        sends = self.session.process_frame(now)
        if self.session.unmeasured is not None:
            sends += self.session.measured(facts or Measured(), now)
        ending = self.session.ending
        if ending is not None and ending.outcome is Outcome.PROTOCOL_VIOLATION:
            raise Violation(ending.detail)
        return self._take(sends)

    def _take(self, sends: list[Send]) -> tuple[list[protocol.FromShim], Reply | ToolReply | None]:
        refusals = [send.message for send in sends if isinstance(send.message, Reply | ToolReply)]
        for send in sends:
            assert protocol.decode_to_guest(send.encoded()) if send.to != "engine" else True
            if isinstance(send.message, Interrupt):
                self.interrupts.append(send.message.cell)
        told = [protocol.decode_from_shim(send.encoded()) for send in sends if send.to == "engine"]
        return told, refusals[0] if refusals else None


def deadline(driver: Driver) -> float:
    assert driver.session.cell is not None
    return driver.session.cell.deadline()


def is_paused(driver: Driver, now: float) -> bool:
    """Whether the guest is not read."""
    return not driver.session.may_read(now, Backlog())


def session(cell: int = 1, timeout: float = 10.0, now: float = 100.0) -> Driver:
    fresh = Driver(CONFIG.session_limits(tools=2))
    fresh.accept(Ready(protocol.VERSION, FACTS), now)
    fresh.execute(cell, timeout, now)
    return fresh


def end_of(messages: list[protocol.FromShim]) -> CellEnd:
    (end,) = messages
    assert isinstance(end, CellEnd)
    return end


def test_a_cell_without_an_error_is_ok_and_with_one_is_the_users() -> None:
    messages, _ = session().accept(Done(1, None), 101.5)
    assert end_of(messages).outcome is Outcome.OK
    assert end_of(messages).elapsed == pytest.approx(1.5)
    messages, _ = session().accept(Done(1, ErrorInfo("E", "", "")), 101)
    assert end_of(messages).outcome is Outcome.USER_ERROR


def test_the_clock_stands_still_while_replies_are_awaited() -> None:
    fresh = session(timeout=10)
    assert deadline(fresh) == 110
    fresh.accept(Call(1, 1, ["a"]), 103)
    fresh.accept(Call(2, 1, ["b"]), 104)
    assert deadline(fresh) == 100 + 3600, "only the limit on all its time is left"
    assert fresh.reply(Reply(1, ["x"]), 150)
    assert deadline(fresh) == 3700, "one of two is still awaited"
    assert fresh.reply(Reply(2, ["y"]), 203)
    assert deadline(fresh) == 210
    messages, _ = fresh.accept(Done(1, None), 205)
    assert end_of(messages).worker_wait == pytest.approx(100)


def test_an_interrupted_cell_keeps_its_first_reason_and_gets_its_grace() -> None:
    fresh = session()
    assert fresh.session.tick(109.9) == []
    assert fresh.session.tick(110) == [Send("init", Interrupt(1))]
    assert fresh.session.from_engine(Interrupt(1), 110.5) == []
    assert deadline(fresh) == 111
    messages, _ = fresh.accept(Done(1, ErrorInfo("KeyboardInterrupt", "", "")), 110.7)
    assert end_of(messages).outcome is Outcome.TIMEOUT
    assert not end_of(messages).state_lost


def test_late_frames_of_an_ended_cell_are_counted_and_delivered_to_nobody() -> None:
    fresh = session()
    fresh.accept(Done(1, None), 101)
    fresh.execute(2, 10, 102)
    assert fresh.accept(Output(1, 1, b"late"), 102) == ([], None)
    assert fresh.accept(Final(1, "late"), 102) == ([], None)
    assert fresh.accept(Display(1, {"text/plain": "late"}, {}), 102) == ([], None)
    _, refusal = fresh.accept(Call(1, 1, ["late"]), 102)
    assert isinstance(refusal, Reply)
    assert [getattr(result, "code", None) for result in refusal.results] == ["cancelled"]
    messages, _ = fresh.accept(Done(2, None), 103)
    assert end_of(messages).dropped == 4


@pytest.mark.parametrize(
    "messages",
    [
        [Ready(protocol.VERSION, FACTS)],
        [Output(2, 1, b"of the future")],
        [Output(0, 1, b"of no cell")],
        [Final(1, "a"), Final(1, "b")],
        [Done(1, None), Done(1, None)],
        [Call(1, 1, ["a"]), Call(1, 1, ["again"])],
        [Call(2, 1, ["a"]), Call(1, 1, ["backwards"])],
        [Call(1 << 62, 1, ["a"])],
        [Call(1, 1, [])],
        [Call(1, 1, ["a"] * 5)],
        [Call(1, 1, ["a" * 2000])],
        [Display(2, {"text/plain": "of the future"}, {})],
        [Display(1, {}, {})],
        [Display(1, {"text/plain": ""}, {})] * (protocol.MAX_DISPLAYS + 1),
        [Display(1, {}, {"image/png": b"x" * 1025})],
        [Display(1, {"text/plain": "é" * 300}, {}), Display(1, {}, {"image/png": b"x" * 425})],
        [ToolCall(1, 1, 2, b"")],
        [ToolCall(1, 1, -1, b"")],
        [ToolCall(1, 2, 0, b"")],
        [ToolCall(1, 1, 0, b"x" * (protocol.TOOL_ARGUMENT_BYTES + 1))],
        [ToolCall(1, 1, 0, b""), ToolCall(1, 1, 1, b"")],
        [Call(5, 1, ["a"]), ToolCall(5, 1, 0, b"")],
        [ToolCall(5, 1, 0, b""), Call(4, 1, ["a"])],
    ],
)
def test_what_no_honest_guest_says_is_a_violation(messages: list[protocol.FromGuest]) -> None:
    fresh = session()
    for message in messages[:-1]:
        fresh.accept(message, 101)
    with pytest.raises(Violation):
        fresh.accept(messages[-1], 101)


def test_output_is_passed_up_to_its_limit_to_the_byte() -> None:
    fresh = session()
    assert fresh.accept(Output(1, 1, b"x" * 1000), 101)[0] == [Output(1, 1, b"x" * 1000)]
    assert fresh.accept(Output(1, 1, b"x" * 100), 101)[0] == [Output(1, 1, b"x" * 24)]
    assert fresh.interrupts == [1]
    assert fresh.accept(Output(1, 1, b"x"), 101)[0] == []
    assert fresh.accept(Output(1, 2, b"other stream"), 101)[0] == [Output(1, 2, b"other stream")]
    assert fresh.interrupts == [1], "once"
    end = end_of(fresh.accept(Done(1, None), 101)[0])
    assert (end.outcome, end.truncated) == (Outcome.OUTPUT_LIMIT, True)


def test_displays_are_passed_up_to_their_limit_to_the_byte() -> None:
    fresh = session()
    shown = [Display(1, {"text/plain": "é" * 300}, {}), Display(1, {}, {"image/png": b"x" * 424})]
    assert [fresh.accept(display, 101) for display in shown] == [([display], None) for display in shown]
    fresh.accept(Done(1, None), 102)
    fresh.execute(2, 10, 103)
    again = Display(2, {"text/plain": "x" * 1024}, {})
    assert fresh.accept(again, 104) == ([again], None), "each cell has the limit to itself"


def test_with_enough_pending_the_guest_is_not_read_until_some_is_answered() -> None:
    fresh = session()
    fresh.accept(Call(1, 1, ["a"]), 101)
    assert not is_paused(fresh, 104)
    fresh.accept(Call(2, 1, ["a"]), 101)
    assert is_paused(fresh, 104)
    fresh.reply(Reply(1, ["x"]), 102)
    assert not is_paused(fresh, 104)
    fresh.accept(Call(3, 1, ["a"]), 103)
    fresh.interrupt(104)
    assert not is_paused(fresh, 104), "its end must be heard"


def test_more_calls_a_second_than_allowed_only_make_the_guest_wait() -> None:
    config = SandboxConfig.model_validate({"calls_per_second": 2.0})
    fresh = Driver(config.session_limits())
    fresh.accept(Ready(protocol.VERSION, FACTS), 100)
    fresh.execute(1, 10, 100)
    assert not is_paused(fresh, 100)
    for number in (1, 2, 3):
        fresh.accept(Call(number, 1, ["a"]), 100)
    assert is_paused(fresh, 100)
    assert fresh.session.resume_at == pytest.approx(100.5)
    assert not is_paused(fresh, 100.6)


def test_the_clock_stands_still_for_tools_as_for_workers() -> None:
    fresh = session(timeout=10)
    call = ToolCall(1, 1, 1, b"[[],{}]")
    assert fresh.accept(call, 103) == ([call], None)
    assert deadline(fresh) == 3700
    assert fresh.reply(ToolReply(1, b"1"), 153)
    assert deadline(fresh) == 160
    assert not fresh.reply(ToolReply(1, b"1"), 154), "one reply a call"


def test_a_tool_call_of_an_ended_cell_is_refused_and_told() -> None:
    fresh = session()
    fresh.accept(Done(1, None), 101)
    fresh.execute(2, 10, 102)
    messages, refusal = fresh.accept(ToolCall(1, 1, 0, b""), 102)
    assert messages == []
    assert isinstance(refusal, ToolReply)
    assert isinstance(refusal.result, ToolFailure)
    assert refusal.result.code == "cancelled"
    fresh.interrupt(103)
    messages, refusal = fresh.accept(ToolCall(2, 2, 0, b""), 103)
    assert (messages, refusal is not None) == ([], True), "an interrupted cell asks for nothing more"


def test_tool_calls_wait_their_turn_with_worker_calls() -> None:
    """Each counts against the rate, and by its largest result, so that unread results are bounded."""
    config = SandboxConfig.model_validate({"calls_per_second": 100.0})
    fresh = Driver(config.session_limits(tools=1))
    fresh.accept(Ready(protocol.VERSION, FACTS), 100)
    fresh.execute(1, 10, 100)
    assert not is_paused(fresh, 100)
    for number in range(1, 65):
        assert not is_paused(fresh, 100)
        fresh.accept(ToolCall(number, 1, 0, b""), 100)
    assert is_paused(fresh, 100)
    fresh.reply(ToolReply(1, b"1"), 100)
    assert not is_paused(fresh, 100)
    for number in range(65, 102):
        fresh.accept(Call(number, 1, ["a"]), 100)
    assert is_paused(fresh, 100)
    assert fresh.session.resume_at == pytest.approx(100.01)


@pytest.mark.parametrize(
    "error", [ErrorInfo("x" * 2000, "", ""), ErrorInfo("", "x" * 10_000, ""), ErrorInfo("", "", "x" * 60_000)]
)
def test_an_error_longer_than_the_library_sends_is_a_violation(error: ErrorInfo) -> None:
    with pytest.raises(Violation):
        session().accept(Done(1, error), 101)


def test_a_reply_that_nobody_awaits_is_not_delivered() -> None:
    fresh = session()
    fresh.accept(Call(1, 1, ["a"]), 101)
    fresh.accept(Done(1, None), 102)
    assert not fresh.reply(Reply(1, ["late"]), 103)
    assert not fresh.reply(Reply(99, ["never asked"]), 103)


MESSAGES = st.one_of(
    st.builds(Output, st.integers(-1, 4), st.sampled_from([1, 2]), st.binary(max_size=40)),
    st.builds(Call, st.integers(-1, 6), st.integers(-1, 4), st.lists(st.text(max_size=5), max_size=6)),
    st.builds(ToolCall, st.integers(-1, 6), st.integers(-1, 4), st.integers(-1, 3), st.binary(max_size=5)),
    st.builds(Final, st.integers(-1, 4), st.text(max_size=5)),
    st.builds(
        Display,
        st.integers(-1, 4),
        st.dictionaries(st.just("text/plain"), st.text(max_size=300)),
        st.dictionaries(st.just("image/png"), st.binary(max_size=300)),
    ),
    st.builds(Done, st.integers(-1, 4), st.none()),
    st.builds(Ready, st.integers(0, 2), st.just(FACTS)),
)
STEPS = st.one_of(
    MESSAGES, st.sampled_from(["execute", "interrupt"]), st.builds(Reply, st.integers(0, 6), st.just(["x"])),
    st.builds(ToolReply, st.integers(0, 6), st.just(b"1")),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_no_interleaving_breaks_the_books(steps: list[object]) -> None:
    """Each cell ends at most once, answers at most once, and its waits never exceed its time."""
    fresh, now, next_cell = session(), 100.0, 2
    ended: list[int] = []
    shown: list[Display] = []
    finals: list[int] = []
    for step in steps:
        now += 1
        if step == "execute":
            if fresh.session.cell is None:
                fresh.execute(next_cell, 5, now)
                next_cell += 1
        elif step == "interrupt":
            if fresh.session.cell is not None:
                fresh.interrupt(now)
        elif isinstance(step, Reply | ToolReply):
            fresh.reply(step, now)
        else:
            try:
                messages, _ = fresh.accept(step, now)  # pyright: ignore[reportArgumentType]  # STEPS are objects
            except Violation:
                break
            ended += [message.cell for message in messages if isinstance(message, CellEnd)]
            shown += [message for message in messages if isinstance(message, Display)]
            finals += [message.cell for message in messages if isinstance(message, Final)]
            for message in messages:
                if isinstance(message, CellEnd):
                    assert 0 <= message.worker_wait <= message.elapsed
    assert len(ended) == len(set(ended))
    assert len(finals) == len(set(finals))
    assert all(bytes_shown(shown, cell) <= 1024 for cell in range(next_cell))


def bytes_shown(displays: list[Display], cell: int) -> int:
    own = [display for display in displays if display.cell == cell]
    text = sum(len(form.encode()) for display in own for form in display.text.values())
    return text + sum(len(form) for display in own for form in display.images.values())


def test_files_are_told_of_only_as_they_were_asked_for() -> None:
    entry = protocol.FileEntry("a", 1)
    answer = protocol.FileList(1, [entry, entry], more=True)
    fresh = session()
    fresh.ask(protocol.ListFiles(1, 2))
    assert fresh.accept(answer, 101) == ([answer], None)
    with pytest.raises(Violation, match="without a request"):
        fresh.accept(answer, 102)
    fresh = session()
    fresh.ask(protocol.ListFiles(1, 1))
    with pytest.raises(Violation, match="larger than requested"):
        fresh.accept(answer, 103)
    fresh = session()
    fresh.ask(protocol.ListFiles(1, 2))
    long = protocol.FileEntry("a" * protocol.LISTING_CHARS, 1)
    with pytest.raises(Violation, match="a list longer"):
        fresh.accept(protocol.FileList(1, [long, entry], more=False), 104)


def test_a_list_is_no_answer_to_the_question_for_a_file() -> None:
    fresh = session()
    fresh.ask(protocol.GetFile(1, "a", 0, 10))
    with pytest.raises(Violation, match="without a request"):
        fresh.accept(protocol.FileList(1, [], more=False), 101)
    fresh = session()
    fresh.ask(protocol.PutFile(2, "a", b"xyz", False))
    with pytest.raises(Violation, match="larger than requested"):
        fresh.accept(protocol.FileData(2, b"x", None), 102)


# The session around the rules


def test_the_rules_leave_the_end_of_the_guest_to_the_session() -> None:
    with pytest.raises(Violation):
        MessageRules(CONFIG.session_limits()).accept(protocol.ReplExit(0, False), 100)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc0",
        b"\x92\x18",
        b"\x93\x17\x01\xa2\xff\xfe",
        b"\x91" * 200_000,
        b"",
        protocol.encode(protocol.Kill()),
    ],
)
def test_bytes_that_are_no_message_end_the_session_and_are_not_quoted(payload: bytes) -> None:
    fresh = session()
    fresh.session.from_guest("init", [payload, protocol.encode(Done(1, None))])
    assert fresh.session.process_frame(101) == []
    assert fresh.session.ending == protocol.Exit(
        Outcome.PROTOCOL_VIOLATION, "a frame that holds no valid message"
    )
    assert not fresh.session.has_frames, "nothing after it is looked at"
    (end,) = fresh.session.end_cell(102, protocol.NOT_MEASURED)
    assert isinstance(end.message, CellEnd)
    assert (end.message.outcome, end.message.state_lost) == (Outcome.PROTOCOL_VIOLATION, True)
    assert fresh.session.end_cell(103, protocol.NOT_MEASURED) == []


def test_a_cell_that_does_not_stop_within_its_grace_ends_the_session() -> None:
    fresh = session()
    assert fresh.session.next_time() == 110
    assert fresh.session.tick(110) == [Send("init", Interrupt(1))]
    assert fresh.session.next_time() == 111
    assert fresh.session.tick(110.9) == []
    assert fresh.session.tick(111) == []
    assert fresh.session.ending == protocol.Exit(Outcome.TIMEOUT, "did not stop when interrupted")


def test_a_limit_that_was_exceeded_explains_an_end_better_than_a_wait_status() -> None:
    exceeded = Outcome.OOM, "too much"
    for message in (Done(1, None), protocol.ReplExit(9, False)):
        fresh = session()
        assert fresh.accept(message, 101, Measured(exceeded=exceeded)) == ([], None)
        assert fresh.session.ending == protocol.Exit(*exceeded)
    fresh = session()
    fresh.accept(protocol.ReplExit(9, False), 101)
    assert fresh.session.ending is not None
    assert fresh.session.ending.outcome is Outcome.KILLED


def test_a_closed_repl_is_inits_to_report_and_a_closed_init_is_the_end() -> None:
    two = GuestSession(CONFIG.session_limits(), has_two_streams=True)
    assert two.closed("repl") == [Send("init", protocol.HungUp())]
    two.closed("init")
    assert two.ending is not None
    assert two.ending.outcome is Outcome.CRASHED
    assert two.closed("repl") == []


def test_what_is_unsent_pauses_the_guest() -> None:
    fresh = session()
    for backlog in (Backlog(4096), Backlog(0, 8 << 20), Backlog(0, 0, 8 << 20)):
        assert not fresh.session.may_read(101, backlog)
    assert fresh.session.may_read(101, Backlog(4095, (8 << 20) - 1, (8 << 20) - 1))


EVENTS = st.one_of(
    MESSAGES,
    st.builds(protocol.ReplExit, st.sampled_from([0, 9, 256]), st.booleans()),
    st.builds(protocol.FileData, st.integers(0, 3), st.binary(max_size=5), st.none()),
    st.builds(protocol.GetFile, st.integers(0, 3), st.just("a"), st.just(0), st.integers(0, 5)),
    st.builds(Reply, st.integers(0, 6), st.just(["x"])),
    st.builds(ToolReply, st.integers(0, 6), st.just(b"1")),
    st.builds(Interrupt, st.integers(0, 4)),
    st.builds(bytes, st.binary(max_size=4)),
    st.sampled_from(["execute", "tick", "output", "repl_closed", "init_closed", "kill", "oom"]),
)


class Interleaving:
    """Events in any order, and the laws that hold after each."""

    def __init__(self, *, two: bool) -> None:
        self.limits = CONFIG.session_limits(tools=2)
        self.guest = GuestSession(self.limits, has_two_streams=two)
        self.two = two
        self.now = 100.0
        self.cell = 0
        self.asked: set[int] = set()
        self.sent: list[protocol.FromShim] = []
        self.ended: list[int] = []

    def happen(self, event: object) -> None:
        was_over, before = self.guest.ending is not None, len(self.sent)
        if isinstance(event, Reply | ToolReply | Interrupt | protocol.GetFile):
            if isinstance(event, protocol.GetFile):
                self.asked.add(event.request)
            self.take(self.guest.from_engine(event, self.now))
        elif isinstance(event, str):
            getattr(self, event)()
        else:
            self.frame(event)
        assert not was_over or event == "output" or len(self.sent) == before, "nothing after the end"

    def take(self, sends: list[Send]) -> None:
        for send in sends:
            if send.to != "engine":
                protocol.decode_to_guest(send.encoded())
                continue
            message = protocol.decode_from_shim(send.encoded())
            number = getattr(message, "cell", self.cell)
            assert number == self.cell, "of the cell that runs, or ran last"
            assert "cell" not in message.__struct_fields__ or number not in self.ended
            if isinstance(message, CellEnd):
                self.ended.append(message.cell)
                assert 0 <= message.worker_wait <= message.elapsed + 1e-6
            self.sent.append(message)

    def frame(self, event: Any) -> None:
        payload = event if isinstance(event, bytes) else protocol.encode(event)
        of_init = isinstance(event, protocol.ReplExit | protocol.FileData)
        self.guest.from_guest("init" if of_init or not self.two else "repl", [payload])
        while self.guest.has_frames and self.guest.may_read(self.now, Backlog()):
            self.take(self.guest.process_frame(self.now))
            if self.guest.unmeasured is not None:
                self.take(self.guest.measured(Measured(), self.now))

    def execute(self) -> None:
        if self.guest.cell is None and self.guest.ending is None:
            self.cell += 1
            self.take(self.guest.from_engine(Execute(self.cell, "x", 5.0), self.now))

    def tick(self) -> None:
        cell = self.guest.cell
        was_interrupted = cell is not None and cell.interrupted is not None
        self.take(self.guest.tick(self.now))
        if cell is not None and not was_interrupted and cell.interrupted is Outcome.TIMEOUT:
            assert cell.waiting_since is None
            assert self.now - cell.started - cell.waited >= 5.0 - 1e-6, "waits do not count"

    def output(self) -> None:
        self.take(self.guest.output(1, b"o" * 700, self.now))

    def repl_closed(self) -> None:
        self.take(self.guest.closed("repl") if self.two else [])

    def init_closed(self) -> None:
        self.take(self.guest.closed("init"))

    def kill(self) -> None:
        self.take(self.guest.from_engine(protocol.Kill(), self.now))

    def oom(self) -> None:
        self.guest.end(Outcome.OOM, "too much")

    def check(self) -> None:
        """The laws of a whole session, once it has ended."""
        self.guest.end(Outcome.KILLED, "the test is over")
        self.take(self.guest.end_cell(self.now, protocol.NOT_MEASURED))
        assert self.guest.cell is None
        assert self.ended == list(range(1, self.cell + 1)), "one end a cell"
        displays = [message for message in self.sent if isinstance(message, Display)]
        for number in self.ended:
            own = [message for message in self.sent if getattr(message, "cell", 0) == number]
            assert sum(isinstance(message, Final) for message in own) <= 1
            for stream in (1, 2):
                printed = [each.data for each in own if isinstance(each, Output) and each.stream == stream]
                assert sum(map(len, printed)) <= self.limits.output_bytes
            assert bytes_shown(displays, number) <= self.limits.display_bytes
        assert {each.request for each in self.sent if isinstance(each, protocol.FileData)} <= self.asked
        calls = [each.call for each in self.sent if isinstance(each, Call | ToolCall)]
        assert calls == sorted(set(calls))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 4)), max_size=60), st.booleans())
def test_no_interleaving_breaks_the_session(events: list[tuple[object, float]], two: bool) -> None:
    """One end a cell, nothing of an old cell in a new one, nothing after the end, no limit exceeded."""
    session = Interleaving(two=two)
    for event, passed in events:
        session.now += passed
        session.happen(event)
    session.check()
