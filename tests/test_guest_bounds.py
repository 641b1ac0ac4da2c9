"""Bytes, not characters, bound what one guest makes the engine hold: pure logic, no process."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest
from guest_session_support import FACTS, Driver, is_paused

from supdist.engine import SandboxConfig
from supdist.engine.sandbox.answer_window import MOST_UNREAD, WINDOW_BYTES, AnswerWindow
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest.files import serve
from supdist.sandbox_image.guest_session import Backlog, CellCollector, Collected, GuestSession, finish
from supdist.sandbox_image.guest_session.pending_calls import LARGEST_CALL, PENDING_BYTES, prompts_cost
from supdist.sandbox_image.guest_session.rate import Rate
from supdist.sandbox_image.protocol import (
    Call,
    CallError,
    Display,
    ErrorInfo,
    Execute,
    FileEntry,
    FileList,
    Final,
    Outcome,
    Output,
    Reply,
    ReplyPart,
    ToolCall,
    Violation,
)

MIB = 1 << 20
EMOJI = "\N{GRINNING FACE}"


def fresh(**options: object) -> Driver:
    driver = Driver(SandboxConfig.model_validate(options).session_limits(tools=1))
    driver.accept(protocol.Ready(protocol.VERSION, FACTS), 100)
    driver.execute(1, 10, 100)
    return driver


def wide(size: int) -> str:
    """Return a text of ``size`` bytes of UTF-8 whose characters take four bytes each."""
    return "a" * (size - 4) + EMOJI


# Prompts


def test_a_prompt_counts_by_its_memory() -> None:
    narrow, four = prompts_cost(["a" * MIB]), prompts_cost([wide(MIB)])
    assert four - narrow == pytest.approx(3 * MIB, rel=0.01)


def test_a_control_character_counts_by_the_json_of_its_request() -> None:
    assert prompts_cost(["\x01" * MIB]) - prompts_cost(["a" * MIB]) == 5 * MIB


def test_wide_prompts_pause_the_guest_four_times_sooner() -> None:
    def calls(prompt: str) -> int:
        driver, number = fresh(), 0
        while not is_paused(driver, 101):
            number += 1
            driver.accept(Call(number, 1, [prompt]), 101)
        return number

    assert calls("a" * MIB) == 10, "each is in memory as text and as a request"
    assert calls(wide(MIB)) == 4


def test_tiny_prompts_count_by_their_objects() -> None:
    driver, number = fresh(pending_calls=1_000_000, calls_per_second=1e6), 0
    while not is_paused(driver, 101):
        number += 1
        driver.accept(Call(number, 1, [""]), 101)
    assert number <= PENDING_BYTES // 4096


def test_a_large_frame_waits_until_its_text_has_room_at_its_widest() -> None:
    driver = fresh()
    driver.accept(Call(1, 1, [wide(3 * MIB)]), 101)
    session = driver.session
    session.from_guest("init", [protocol.encode(Call(2, 1, ["a" * 3 * MIB]))])
    assert not session.may_process(101, Backlog())
    driver.reply(Reply(1, ["x"]), 102)
    assert session.may_process(102, Backlog())


def test_a_prompt_without_room_is_too_long_and_no_violation() -> None:
    driver = fresh(prompt="16MiB")
    messages, refusal = driver.accept(Call(1, 1, [wide(16 * MIB)]), 101)
    assert messages == []
    assert isinstance(refusal, Reply)
    (error,) = refusal.results
    assert isinstance(error, CallError)
    assert error.code == "too_long"
    assert str(LARGEST_CALL // MIB) in error.message
    assert not is_paused(driver, 101), "it is not pending"
    longest = Call(2, 1, ["a" * 16 * MIB])
    assert driver.accept(longest, 101) == ([longest], None)


@pytest.mark.parametrize(
    "prompts",
    [["a"] * (protocol.CALL_PROMPTS + 1), ["a" * (MIB // 2), "é" * (MIB // 4), "a"]],
    ids=["many", "long"],
)
def test_a_call_that_the_library_cuts_in_several_is_a_violation(prompts: list[str]) -> None:
    with pytest.raises(Violation):
        fresh(batch=65_536).accept(Call(1, 1, prompts), 101)


def test_prompts_of_one_call_may_take_what_the_library_sends() -> None:
    largest = Call(1, 1, ["a" * (MIB // 256)] * 256)
    assert fresh().accept(largest, 101) == ([largest], None)


def test_arguments_of_a_tool_count_as_objects() -> None:
    driver = fresh()
    driver.accept(ToolCall(1, 1, 0, b"x" * protocol.TOOL_ARGUMENT_BYTES), 101)
    driver.accept(ToolCall(2, 1, 0, b"x" * protocol.TOOL_ARGUMENT_BYTES), 101)
    assert not is_paused(driver, 101)
    driver.accept(ToolCall(3, 1, 0, b"x" * protocol.TOOL_ARGUMENT_BYTES), 101)
    assert is_paused(driver, 101)


def test_long_lists_are_refused_before_their_items_are_made() -> None:
    """A list of 4 million texts of one byte takes 8 MB of a frame, and 35 MB of memory."""
    texts = b"\xdd" + (4_000_000).to_bytes(4, "big") + b"\xa1z" * 4_000_000
    driver = fresh()
    driver.session.from_guest("init", [b"\x94\x16\x01\x01" + texts])
    tracemalloc.start()
    driver.session.process_frame(101)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert driver.session.ending is not None
    assert peak < MIB


def test_a_frame_is_no_larger_than_what_a_guest_sends() -> None:
    limits = SandboxConfig().session_limits()
    assert limits.guest_frame_bytes < 9 * MIB < limits.frame_bytes
    assert SandboxConfig(prompt="16MiB").session_limits().guest_frame_bytes > 16 * MIB


# Rates


def test_a_rate_holds_a_second_and_what_is_given_once() -> None:
    rate = Rate(10.0)
    assert rate.resume_at(0.0) is None
    for _ in range(100):
        rate.give(5)
    for _ in range(15):
        assert rate.resume_at(0.0) is None
        rate.take()
    rate.take()
    assert rate.resume_at(0.0) == pytest.approx(0.1)
    assert rate.resume_at(0.2) is None


@pytest.mark.parametrize("two", [True, False], ids=["process", "container"])
def test_output_in_a_frame_is_a_violation_where_pipes_are_read(two: bool) -> None:
    for data in (b"x", b""):
        session = GuestSession(SandboxConfig().session_limits(), has_two_streams=two)
        session.from_engine(Execute(1, "x", 10), 100)
        session.from_guest("repl" if two else "init", [protocol.encode(Output(1, 1, data))])
        session.process_frame(101)
        assert (session.ending is not None) == (two or not data)


@pytest.mark.parametrize(
    "message",
    [Output(1, 1, b"x"), Final(1, "late"), Display(1, {"text/plain": "late"}, {})],
    ids=lambda message: type(message).__name__,
)
def test_every_late_frame_counts_against_a_rate(message: protocol.FromGuest) -> None:
    driver = fresh()
    driver.accept(protocol.Done(1, None), 100)
    driver.execute(2, 10, 100)
    sent = 0
    while not is_paused(driver, 100) and sent < 5000:
        driver.accept(message, 100)
        sent += 1
    assert 1900 < sent < 2200
    assert driver.session.resume_at == pytest.approx(100, abs=0.01)


def test_pieces_of_a_frame_count_too() -> None:
    driver = fresh()
    assert not is_paused(driver, 100)
    for _ in range(3000):
        driver.session.from_guest("init", [])
    assert is_paused(driver, 100)


def test_the_ends_of_many_cells_do_not_use_up_the_rate() -> None:
    driver = fresh()
    for number in range(1, 10_000):
        driver.accept(protocol.Done(number, None), 100)
        assert not is_paused(driver, 100)
        driver.execute(number + 1, 10, 100)


# Answers


def test_calls_begin_while_their_answers_fit() -> None:
    window = AnswerWindow()
    first = window.expect("worker", 256)
    assert first == WINDOW_BYTES
    assert window.expect("worker", 1) is None
    window.learn("worker", 256, 256 * 100)
    window.release(first)
    reserved = [window.expect("worker", 256) for _ in range(9)]
    assert None not in reserved[:8], "small answers open the window"
    assert reserved[8] is None


def test_large_answers_close_the_window_at_once_but_for_one_call() -> None:
    window = AnswerWindow()
    window.learn("worker", 1, 8 * MIB)
    reserved = window.expect("worker", 256)
    assert reserved is not None, "or it would wait for ever"
    assert window.expect("worker", 1) is None
    window.release(reserved)
    assert [window.expect("worker", 1) is None for _ in range(3)] == [False, False, True]


def test_what_the_guest_does_not_read_stops_answers_and_calls() -> None:
    window = AnswerWindow()
    window.sent(MOST_UNREAD + 1)
    assert not window.may_send
    assert window.expect("worker", 256) is None
    window.taken(MOST_UNREAD + 1)
    assert window.may_send
    assert window.expect("worker", 256) is not None


def test_a_part_of_a_reply_reaches_only_a_pending_call() -> None:
    driver = fresh()
    driver.accept(Call(1, 1, ["a", "b"]), 101)
    part = ReplyPart(1, ["x"])
    assert [send.message for send in driver.session.from_engine(part, 102)] == [part]
    assert driver.reply(Reply(1, ["y"]), 103)
    assert driver.session.from_engine(part, 104) == []


# Results


def memory(result: Collected) -> int:
    forms = [form for shown in result.displays for form in shown.values()]
    return sum(map(sys.getsizeof, [result.stdout, result.stderr, result.final or "", *forms]))


@pytest.mark.parametrize("last", ["x", "é", "€", EMOJI])
def test_a_result_takes_four_times_the_output_at_most(last: str) -> None:
    most = protocol.result_bytes(MIB)
    collector = CellCollector(most)
    text = "x" * (MIB - 4) + last
    collector.add(Output(1, 1, text.encode()))
    collector.add(Output(1, 2, text.encode()))
    collector.add(Display(1, {"text/plain": "shown", "text/html": text}, {"image/png": b"x" * MIB}))
    collector.add(Final(1, text[: MIB // 2] + last))
    error = ErrorInfo("E" * 200, "m" * 4000, "t" * 24_000)
    result = finish(collector, error)
    assert memory(result) + 28_000 <= most
    assert result.final == text[: MIB // 2] + last, "an answer is whole"
    assert result.is_cut
    assert any("takes at most" in part for part in (result.stdout, result.stderr, str(result.displays)))


def test_what_fits_is_whole_and_not_said_to_be_cut() -> None:
    collector = CellCollector(protocol.result_bytes(MIB))
    for _ in range(4):
        collector.add(Output(1, 1, b"x" * (MIB // 4)))
    collector.add(Output(1, 2, "é€".encode() + b"\xff"))
    collector.add(Display(1, {"text/plain": "1"}, {}))
    result = finish(collector, None)
    assert (result.stdout, result.stderr) == ("x" * MIB, "é€\ufffd")
    assert (result.displays, result.is_cut) == ([{"text/plain": "1"}], False)


def test_a_cut_output_ends_with_a_word() -> None:
    collector = CellCollector(256 << 10)
    for start in range(0, 512, 64):
        collector.add(Output(1, 1, (f"{start:06}" + "x" * ((64 << 10) - 10) + EMOJI).encode()))
    result = finish(collector, None)
    assert result.is_cut
    assert result.stdout.endswith("takes at most 262144 bytes of memory]")
    assert sys.getsizeof(result.stdout) <= 256 << 10


def test_a_list_of_more_files_than_the_library_looks_at_is_a_violation() -> None:
    driver = fresh()
    driver.ask(protocol.ListFiles(1, 10**9))
    files = [FileEntry("a", 1)] * (protocol.LISTING_FILES + 1)
    with pytest.raises(Violation):
        driver.accept(FileList(1, files, more=True), 101)
    assert driver.session.ending is not None
    assert driver.session.ending.outcome is Outcome.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    ("files", "more"), [(protocol.LISTING_FILES, False), (protocol.LISTING_FILES + 1, True)]
)
def test_a_list_says_whether_there_are_files_that_it_did_not_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, more: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(files):
        (tmp_path / str(number)).touch()
    answer = serve(protocol.ListFiles(1, 10**9))
    assert isinstance(answer, FileList)
    # Their paths have a bound of their own, which is not reached.
    assert (len(answer.files), answer.more) == (protocol.LISTING_FILES, more)
