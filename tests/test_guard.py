from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.engine import SandboxConfig
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guard import Guard
from supdist.sandbox_image.protocol import (
    Call,
    CellEnd,
    Display,
    Done,
    ErrorInfo,
    Final,
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


def guard(cell: int = 1, timeout: float = 10.0, now: float = 100.0) -> Guard:
    fresh = Guard(CONFIG.session_limits(tools=2))
    fresh.accept(Ready(protocol.VERSION, FACTS), now)
    fresh.execute(cell, timeout, now)
    return fresh


def end_of(messages: list[protocol.FromShim]) -> CellEnd:
    (end,) = messages
    assert isinstance(end, CellEnd)
    return end


def test_a_cell_without_an_error_is_ok_and_with_one_is_the_users() -> None:
    messages, _ = guard().accept(Done(1, None), 101.5)
    assert end_of(messages).outcome is Outcome.OK
    assert end_of(messages).elapsed == pytest.approx(1.5)
    messages, _ = guard().accept(Done(1, ErrorInfo("E", "", "")), 101)
    assert end_of(messages).outcome is Outcome.USER_ERROR


def test_the_clock_stands_still_while_replies_are_awaited() -> None:
    fresh = guard(timeout=10)
    assert fresh.cell is not None
    assert fresh.cell.deadline() == 110
    fresh.accept(Call(1, 1, ["a"]), 103)
    fresh.accept(Call(2, 1, ["b"]), 104)
    assert fresh.cell.deadline() == 100 + 3600, "only the limit on all its time is left"
    assert fresh.reply(Reply(1, ["x"]), 150)
    assert fresh.cell.deadline() == 3700, "one of two is still awaited"
    assert fresh.reply(Reply(2, ["y"]), 203)
    assert fresh.cell.deadline() == 210
    messages, _ = fresh.accept(Done(1, None), 205)
    assert end_of(messages).worker_wait == pytest.approx(100)


def test_an_interrupted_cell_keeps_its_first_reason_and_gets_its_grace() -> None:
    fresh = guard()
    fresh.interrupt(Outcome.TIMEOUT, 110)
    fresh.interrupt(Outcome.KILLED, 110.5)
    assert fresh.cell is not None
    assert fresh.cell.deadline() == 111
    messages, _ = fresh.accept(Done(1, ErrorInfo("KeyboardInterrupt", "", "")), 110.7)
    assert end_of(messages).outcome is Outcome.TIMEOUT
    assert not end_of(messages).state_lost


def test_late_frames_of_an_ended_cell_are_counted_and_delivered_to_nobody() -> None:
    fresh = guard()
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
        [protocol.ReplExit(0, False)],
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
    fresh = guard()
    for message in messages[:-1]:
        fresh.accept(message, 101)
    with pytest.raises(Violation):
        fresh.accept(messages[-1], 101)


def test_output_is_passed_up_to_its_limit_to_the_byte() -> None:
    fresh = guard()
    assert fresh.accept(Output(1, 1, b"x" * 1000), 101)[0] == [Output(1, 1, b"x" * 1000)]
    assert fresh.accept(Output(1, 1, b"x" * 100), 101)[0] == [Output(1, 1, b"x" * 24)]
    assert fresh.output_exceeded
    assert fresh.accept(Output(1, 1, b"x"), 101)[0] == []
    assert fresh.accept(Output(1, 2, b"other stream"), 101)[0] == [Output(1, 2, b"other stream")]
    end = end_of(fresh.accept(Done(1, None), 101)[0])
    assert (end.outcome, end.truncated) == (Outcome.OUTPUT_LIMIT, True)


def test_displays_are_passed_up_to_their_limit_to_the_byte() -> None:
    fresh = guard()
    shown = [Display(1, {"text/plain": "é" * 300}, {}), Display(1, {}, {"image/png": b"x" * 424})]
    assert [fresh.accept(display, 101) for display in shown] == [([display], None) for display in shown]
    fresh.accept(Done(1, None), 102)
    fresh.execute(2, 10, 103)
    again = Display(2, {"text/plain": "x" * 1024}, {})
    assert fresh.accept(again, 104) == ([again], None), "each cell has the limit to itself"


def test_with_enough_pending_the_guest_is_not_read_until_some_is_answered() -> None:
    fresh = guard()
    fresh.accept(Call(1, 1, ["a"]), 101)
    assert not fresh.has_enough_pending
    fresh.accept(Call(2, 1, ["a"]), 101)
    assert fresh.has_enough_pending
    fresh.reply(Reply(1, ["x"]), 102)
    assert not fresh.has_enough_pending
    fresh.accept(Call(3, 1, ["a"]), 103)
    fresh.interrupt(Outcome.TIMEOUT, 104)
    assert not fresh.has_enough_pending, "its end must be heard"


def test_more_calls_a_second_than_allowed_only_make_the_guest_wait() -> None:
    config = SandboxConfig.model_validate({"calls_per_second": 2.0})
    fresh = Guard(config.session_limits())
    fresh.accept(Ready(protocol.VERSION, FACTS), 100)
    fresh.execute(1, 10, 100)
    assert fresh.quiet_until(100) is None
    for number in (1, 2, 3):
        fresh.accept(Call(number, 1, ["a"]), 100)
    assert fresh.quiet_until(100) == pytest.approx(100.5)
    assert fresh.quiet_until(100.6) is None


def test_the_clock_stands_still_for_tools_as_for_workers() -> None:
    fresh = guard(timeout=10)
    assert fresh.cell is not None
    call = ToolCall(1, 1, 1, b"[[],{}]")
    assert fresh.accept(call, 103) == ([call], None)
    assert fresh.cell.deadline() == 3700
    assert fresh.reply(ToolReply(1, b"1"), 153)
    assert fresh.cell.deadline() == 160
    assert not fresh.reply(ToolReply(1, b"1"), 154), "one reply a call"


def test_a_tool_call_of_an_ended_cell_is_refused_and_told() -> None:
    fresh = guard()
    fresh.accept(Done(1, None), 101)
    fresh.execute(2, 10, 102)
    messages, refusal = fresh.accept(ToolCall(1, 1, 0, b""), 102)
    assert messages == []
    assert isinstance(refusal, ToolReply)
    assert isinstance(refusal.result, ToolFailure)
    assert refusal.result.code == "cancelled"
    fresh.interrupt(Outcome.TIMEOUT, 103)
    messages, refusal = fresh.accept(ToolCall(2, 2, 0, b""), 103)
    assert (messages, refusal is not None) == ([], True), "an interrupted cell asks for nothing more"


def test_tool_calls_wait_their_turn_with_worker_calls() -> None:
    """Each call counts with its largest result, so that unread ones are bounded, and against the rate."""
    config = SandboxConfig.model_validate({"calls_per_second": 100.0})
    fresh = Guard(config.session_limits(tools=1))
    fresh.accept(Ready(protocol.VERSION, FACTS), 100)
    fresh.execute(1, 10, 100)
    assert fresh.quiet_until(100) is None
    for number in range(1, 65):
        assert not fresh.has_enough_pending
        fresh.accept(ToolCall(number, 1, 0, b""), 100)
    assert fresh.has_enough_pending
    fresh.reply(ToolReply(1, b"1"), 100)
    assert not fresh.has_enough_pending
    for number in range(65, 102):
        fresh.accept(Call(number, 1, ["a"]), 100)
    assert fresh.quiet_until(100) == pytest.approx(100.01)


@pytest.mark.parametrize(
    "error", [ErrorInfo("x" * 2000, "", ""), ErrorInfo("", "x" * 10_000, ""), ErrorInfo("", "", "x" * 60_000)]
)
def test_an_error_longer_than_the_library_sends_is_a_violation(error: ErrorInfo) -> None:
    with pytest.raises(Violation):
        guard().accept(Done(1, error), 101)


def test_a_reply_that_nobody_awaits_is_not_delivered() -> None:
    fresh = guard()
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
    fresh, now, next_cell = guard(), 100.0, 2
    ended: list[int] = []
    shown: list[Display] = []
    finals: list[int] = []
    for step in steps:
        now += 1
        if step == "execute":
            if fresh.cell is None:
                fresh.execute(next_cell, 5, now)
                next_cell += 1
        elif step == "interrupt":
            if fresh.cell is not None:
                fresh.interrupt(Outcome.TIMEOUT, now)
        elif isinstance(step, Reply | ToolReply):
            fresh.reply(step, now)
        else:
            try:
                messages, _ = fresh.accept(step, now)  # pyright: ignore[reportArgumentType]  # a step is narrowed by its kind
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
    fresh = guard()
    fresh.ask(protocol.ListFiles(1, 2))
    assert fresh.accept(answer, 101) == ([answer], None)
    with pytest.raises(Violation, match="nobody asked"):
        fresh.accept(answer, 102)
    fresh.ask(protocol.ListFiles(1, 1))
    with pytest.raises(Violation, match="more of a file, or of files"):
        fresh.accept(answer, 103)
    fresh.ask(protocol.ListFiles(1, 2))
    long = protocol.FileEntry("a" * protocol.LISTING_CHARS, 1)
    with pytest.raises(Violation, match="more of a list"):
        fresh.accept(protocol.FileList(1, [long, entry], more=False), 104)


def test_a_list_is_no_answer_to_the_question_for_a_file() -> None:
    fresh = guard()
    fresh.ask(protocol.GetFile(1, "a", 0, 10))
    with pytest.raises(Violation, match="nobody asked"):
        fresh.accept(protocol.FileList(1, [], more=False), 101)
    fresh.ask(protocol.PutFile(2, "a", b"xyz", False))
    with pytest.raises(Violation, match="more of a file, or of files"):
        fresh.accept(protocol.FileData(2, b"x", None), 102)
