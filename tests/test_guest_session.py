"""The rules for a guest's messages: clocks, counters, sizes and numbers."""

from __future__ import annotations

import pytest
from guest_session_support import CONFIG, FACTS, Driver, deadline, end_of, is_paused, session

from supdist.engine import SandboxConfig
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Send
from supdist.sandbox_image.protocol import (
    Call,
    Display,
    Done,
    ErrorInfo,
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
    """Each counts against the rate, and by the memory of its arguments."""
    config = SandboxConfig.model_validate({"calls_per_second": 100.0})
    fresh = Driver(config.session_limits(tools=1))
    fresh.accept(Ready(protocol.VERSION, FACTS), 100)
    fresh.execute(1, 10, 100)
    assert not is_paused(fresh, 100)
    largest = b"x" * protocol.TOOL_ARGUMENT_BYTES
    for number in range(1, 4):
        assert not is_paused(fresh, 100), "JSON of 256 KiB may be 8 MiB of objects"
        fresh.accept(ToolCall(number, 1, 0, largest), 100)
    assert is_paused(fresh, 100)
    fresh.reply(ToolReply(1, b"1"), 100)
    assert not is_paused(fresh, 100)
    fresh.reply(ToolReply(2, b"1"), 100)
    for number in range(4, 102):
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


def test_a_cell_that_calls_often_ends_at_the_limit_on_all_its_time() -> None:
    config = SandboxConfig.model_validate({"wall": 20.0})
    fresh = Driver(config.session_limits())
    fresh.execute(1, 10, 100)
    fresh.accept(Call(1, 1, ["a"]), 101)
    assert deadline(fresh) == 120
    fresh.reply(Reply(1, ["x"]), 115)
    assert deadline(fresh) == 120, "without that limit its clock would end at 124"
    assert fresh.session.tick(120) == [Send("init", Interrupt(1))]


def test_an_interrupted_cell_cannot_call_a_worker() -> None:
    fresh = session()
    fresh.interrupt(101)
    messages, refusal = fresh.accept(Call(1, 1, ["a", "b"]), 101)
    assert messages == []
    assert isinstance(refusal, Reply)
    assert [getattr(result, "code", None) for result in refusal.results] == ["cancelled"] * 2
    assert not fresh.reply(Reply(1, ["x", "y"]), 101), "it is not pending"


def test_an_answer_is_passed_up_to_its_limit() -> None:
    def fresh() -> Driver:
        driver = Driver(SandboxConfig().session_limits())
        driver.execute(1, 10, 100)
        return driver

    longest = Final(1, "a" * (8 << 20))
    assert fresh().accept(longest, 101) == ([longest], None)
    # As UTF-8 it is as long, in memory four times.
    widest = Final(1, "a" * ((8 << 20) - 4) + "😀")
    assert fresh().accept(widest, 101) == ([widest], None)
    with pytest.raises(Violation, match="an answer longer"):
        fresh().accept(Final(1, "a" * ((8 << 20) + 1)), 101)


def test_a_small_output_leaves_an_answer_half_of_the_result() -> None:
    most = CONFIG.session_limits().result_bytes // 2
    longest = Final(1, "a" * most)
    assert session().accept(longest, 101) == ([longest], None)
    for answer in ("a" * (most + 128), "a" * (most // 4) + "😀" * 32):
        with pytest.raises(Violation, match="an answer longer"):
            session().accept(Final(1, answer), 101)


@pytest.mark.parametrize("version", [protocol.VERSION - 1, protocol.VERSION + 1])
def test_a_guest_of_another_protocol_version_is_a_violation(version: int) -> None:
    with pytest.raises(Violation, match="another protocol version"):
        Driver(CONFIG.session_limits()).accept(Ready(version, FACTS), 100)
