"""The session around the rules: streams, file requests, backpressure and ends."""

from __future__ import annotations

import pytest
from guest_session_support import CONFIG, FACTS, session

from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Backlog, GuestSession, Measured, Send, Source
from supdist.sandbox_image.guest_session.rules import MessageRules
from supdist.sandbox_image.protocol import (
    Call,
    CellEnd,
    Display,
    Done,
    Execute,
    Final,
    Interrupt,
    Outcome,
    Output,
    Ready,
    Reply,
    ToolCall,
    ToolReply,
    Violation,
)


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


def frame(guest: GuestSession, source: Source, message: protocol.FromGuest) -> list[Send]:
    guest.from_guest(source, [protocol.encode(message)])
    return guest.process_frame(101)


OF_INIT = [protocol.ReplExit(0, False), protocol.FileData(1, b"", None), protocol.FileList(1, [], more=False)]
OF_REPL = [
    Ready(protocol.VERSION, FACTS),
    Display(1, {"text/plain": "x"}, {}),
    Call(1, 1, ["a"]),
    ToolCall(1, 1, 0, b""),
    Final(1, "a"),
    Done(1, None),
]


@pytest.mark.parametrize("message", [*OF_INIT, *OF_REPL], ids=lambda message: type(message).__name__)
def test_a_message_on_the_stream_of_the_other_process_is_a_violation(message: protocol.FromGuest) -> None:
    own, other = ("init", "repl") if message in OF_INIT else ("repl", "init")
    for source in (own, other):
        guest = GuestSession(CONFIG.session_limits(tools=2), has_two_streams=True)
        guest.from_engine(Execute(1, "x", 10), 100)
        guest.from_engine(protocol.GetFile(1, "a", 0, 10), 100)
        guest.from_engine(protocol.ListFiles(1, 10), 100)
        sends = frame(guest, source, message)
        if source == own:
            assert guest.ending is None
            assert sends or guest.unmeasured == message
        else:
            assert (sends, guest.unmeasured) == ([], None)
            assert guest.ending is not None
            assert guest.ending.outcome is Outcome.PROTOCOL_VIOLATION
            assert "on the wrong stream" in guest.ending.detail


@pytest.mark.parametrize(
    "message",
    [
        Execute(2, "x", 10),
        Reply(1, ["x"]),
        ToolReply(2, b"1"),
        Interrupt(1),
        protocol.GetFile(1, "a", 0, 1),
        protocol.ListFiles(1, 1),
        protocol.Kill(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_after_the_end_no_message_of_the_engine_is_passed(message: protocol.ToShim) -> None:
    fresh = session()
    fresh.accept(Call(1, 1, ["a"]), 101)
    fresh.accept(ToolCall(2, 1, 0, b""), 101)
    if isinstance(message, Execute):
        fresh.accept(Done(1, None), 101)
    fresh.session.end(Outcome.OOM, "too much")
    assert fresh.session.from_engine(message, 102) == []
    assert fresh.session.ending == protocol.Exit(Outcome.OOM, "too much")
    assert fresh.session.cell is None or fresh.session.cell.number == 1


def test_a_measurement_after_the_end_or_without_a_message_changes_nothing() -> None:
    exceeded = Measured(exceeded=(Outcome.OOM, "too much"))
    fresh = session()
    assert fresh.session.measured(exceeded, 101) == []
    assert fresh.session.ending is None
    for message in (Done(1, None), protocol.ReplExit(9, False)):
        fresh = session()
        assert frame(fresh.session, "init", message) == []
        fresh.session.end(Outcome.KILLED, "killed by the engine")
        assert fresh.session.measured(Measured(), 102) == []
        assert fresh.session.unmeasured is None
        assert fresh.session.ending == protocol.Exit(Outcome.KILLED, "killed by the engine")
        (end,) = fresh.session.end_cell(103, protocol.NOT_MEASURED)
        assert isinstance(end.message, CellEnd)
        assert end.message.outcome is Outcome.KILLED


def test_an_exceeded_limit_explains_a_closed_stream() -> None:
    exceeded = Outcome.OOM, "too much"
    guest = GuestSession(CONFIG.session_limits(), has_two_streams=True)
    assert guest.closed("repl", exceeded) == [Send("init", protocol.HungUp())]
    assert guest.ending is None
    assert guest.closed("init", exceeded) == []
    assert guest.ending == protocol.Exit(*exceeded)
    assert guest.closed("init") == []
    assert guest.ending == protocol.Exit(*exceeded), "the first reason stays"


def test_a_guest_is_not_read_while_its_frames_wait() -> None:
    fresh = session()
    fresh.session.from_guest("init", [protocol.encode(Output(1, 1, b"x"))] * 2)
    for _ in range(2):
        assert not fresh.session.may_read(101, Backlog())
        assert fresh.session.may_process(101, Backlog())
        assert not fresh.session.may_process(101, Backlog(4096)), "the backlog holds frames up too"
        fresh.session.process_frame(101)
    assert fresh.session.may_read(101, Backlog())


@pytest.mark.parametrize("status", [-1, 0x137F, 0xFFFF, 1 << 16, 1 << 40])
def test_an_exit_status_that_no_process_has_is_a_violation(status: int) -> None:
    with pytest.raises(Violation, match="that no process has"):
        session().accept(protocol.ReplExit(status, False), 101)
