"""What a run shows: the panel at every width, and lines where no panel can be drawn."""

from __future__ import annotations

import io
import os
import pty
import re
import termios
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console
from support import FakeClock

from supdist.engine.cli.lines import Lines, plain_lines
from supdist.engine.cli.panel import Panel, excerpt, live_panel
from supdist.engine.cli.progress import Progress, duration
from supdist.engine.errors import CodeTooLong
from supdist.engine.events import (
    BlockEnded,
    BlockStarted,
    Event,
    Metrics,
    Remaining,
    Retrying,
    SupervisorReplied,
    SupervisorWrote,
    TurnStarted,
    Warned,
)
from supdist.engine.sandbox import Outcome
from supdist.engine.sandbox.config import not_run
from supdist.engine.terminal import can_redraw, wrapped
from supdist.handlers import Usage

HOSTILE = "print('\x1b]0;owned\x07\x1b[2J\u202e表示 [red] :smile:')\r\n" * 40
QUESTION = "Which [bold]decks[/bold] :smile: last? \x1b[2J" * 20
RED = "\x1b[31m"


ENDED = replace(
    not_run(CodeTooLong("long")), outcome=Outcome.OK, stdout="\x1b[2J" * 9, error=None, elapsed=2.0
)


def metrics(done: int, failed: int = 0, total: int = 200, in_flight: int = 64) -> Metrics:
    """So many of the worker calls done, at a cent for ten."""
    in_flight = min(in_flight, total - done)
    return Metrics(
        queued=total - done - in_flight,
        in_flight=in_flight,
        done=done,
        failed=failed,
        failed_calls={"unreachable": failed} if failed else {},
        usage=Usage(input_tokens=100 * done, output_tokens=10 * done, calls=done - failed),
        cost_usd=0.001 * done + 0.5,
        supervisor_cost_usd=0.5,
        worker_cost_usd=0.001 * done,
        left=Remaining(500 - done, 50_000 - 110 * done, 2 - 0.001 * done, 600.0),
    )


EVENTS: list[tuple[float, Event]] = [
    (1.0, TurnStarted(1)),
    (5.0, SupervisorReplied(1, "x", Usage(900, 80, 1, reasoning_tokens=60), 4.0)),
    (5.0, BlockStarted(1, 1, 2, HOSTILE)),
    (5.0, metrics(0)),
    (13.0, Retrying("worker", "rate_limit", 6.0, 2, 3)),
    (13.0, Retrying("worker", "rate_limit", 5.5, 2, 3)),
    (15.0, metrics(50, failed=3)),
]

FAILED = "3 worker calls failed: no connection (3)"

FACTS = (
    "15 s · running block 1 of 2, for 10 s", "50 of 200 worker calls · ETA 14 s",
    "64 in flight · 86 queued", FAILED,
    "worker: rate-limited, again in 4 s, 2 of 3 (2 calls wait)",
    "1 call · 900 tokens in, 80 out (60 of thoughts) · $0.5000",
    "47 calls · 5,000 tokens in, 500 out · 2 retries · $0.0500",
    "450 worker calls · 44,500 tokens · $1.9500 · 10 min 0 s",
)  # fmt: skip


def shown(width: int, events: Sequence[tuple[float, Event]] = EVENTS, **options: object) -> str:
    clock, file = FakeClock(0.0), io.StringIO()
    standard = {"force_terminal": True, "color_system": None, "no_color": False, "height": 60}
    console = Console(file=file, width=width, **(standard | options))  # type: ignore[arg-type]  # mixed values
    panel = Panel(QUESTION, console, clock)
    for seconds, event in events:
        clock.now = seconds
        panel.on_event(event)
    console.print(panel)
    return file.getvalue()


def columns(line: str) -> int:
    return len(line) + sum(unicodedata.east_asian_width(each) in "WF" for each in line)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_shows_the_way_at_any_width_wrapped_at_words(width: int) -> None:
    text = shown(width)
    # Nothing that a model wrote moves the cursor, turns text around, or is markup.
    assert not {"\x1b", "\x07", "\u202e", "\r", "😄"} & set(text)
    assert all(columns(line) <= width for line in text.splitlines())
    words = " ".join(re.sub("[│╭╮╰╯]", " ", text).split())
    for fact in FACTS:
        assert fact in words


def test_only_the_first_lines_of_code_are_shown_and_none_where_there_is_no_room() -> None:
    assert "# … 32 more lines" in shown(80)
    assert "print" not in shown(80, height=12)
    assert excerpt("x" * 50_000_000 + "\n1").splitlines() == ["x" * 200, "# … 1 more line"]


def test_failures_are_red_and_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{RED}{FAILED}" in shown(80, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    without = shown(80, color_system="standard", no_color=None)
    assert not re.search("\x1b\\[[0-9;]*(3[0-7]|9[0-7])[0-9;]*m", without)
    # The bar can be read all the same.
    assert "━━━━━───────────────" in re.sub("\x1b\\[[0-9;]*m", "", without)


def test_a_dead_worker_is_one_line() -> None:
    retries: list[tuple[float, Event]] = [
        (6.0, Retrying("worker", "unreachable", 9.0, 2, 3)) for _ in range(50)
    ]
    text = shown(120, [*EVENTS[:4], *retries, (8.0, metrics(50, failed=50))])
    assert text.count("no connection, again in 7 s, 2 of 3 (50 calls wait)") == 1
    assert text.count("50 worker calls failed: no connection (50)") == 1


def test_a_retry_counts_down_and_goes() -> None:
    clock = FakeClock(0.0)
    progress = Progress(clock)
    progress.add(Retrying("supervisor", "timeout", 4.0, 2, 3))
    lines: list[list[str]] = []
    for clock.now in (0.0, 2.5, 4.0):
        lines.append(progress.retrying())
    assert lines == [
        ["supervisor: timed out, again in 4 s, 2 of 3"],
        ["supervisor: timed out, again in 2 s, 2 of 3"],
        [],
    ]
    assert progress.supervisor() == "1 retry"


def test_the_rate_is_of_this_block_and_counts_no_cached_answer() -> None:
    clock = FakeClock(0.0)
    progress = Progress(clock)
    for clock.now, event in (
        (0.0, BlockStarted(1, 1, 1, "")),
        (0.0, metrics(0, total=10)),
        (900.0, metrics(10, total=10)),
        (1000.0, BlockStarted(2, 1, 1, "")),
        (1100.0, Metrics(done=15, cached=5, in_flight=4, queued=4)),
        (1110.0, Metrics(done=17, cached=5, in_flight=4, queued=2)),
    ):
        progress.add(event)
    assert (progress.done, progress.total) == (7, 13)
    assert progress.waiting() == "4 in flight · 2 queued · 5 cached"
    # Two and half of four have taken ten seconds; four are left.
    assert progress.seconds_left() == 10.0


def test_of_a_supervisor_only_the_size_of_its_text_is_shown() -> None:
    progress = Progress(FakeClock(0.0))
    progress.add(TurnStarted(3))
    assert "waiting for the supervisor" in progress.now()
    for _ in range(3):
        progress.add(SupervisorWrote(3, "secret"))
    assert "the supervisor writes, 18 characters" in progress.now()
    assert "secret" not in progress.line()


def test_lines_come_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock(0.0)
    lines = Lines(clock)
    lines.on_event(TurnStarted(1))
    for clock.now in map(float, range(1, 36)):
        lines.on_event(metrics(int(clock.now)))
        if clock.now == 12:
            # Another line moves the next one.
            lines.on_event(Warned("disk \x1b[2J"))
    found = capsys.readouterr().err.splitlines()
    assert [line.split(" waiting")[0] for line in found] == [
        "turn 1 · 10 s ·",
        "warning: disk \\x1b[2J",
        "turn 1 · 22 s ·",
        "turn 1 · 32 s ·",
    ]
    assert "32 of 200 worker calls · ETA 66 s · 64 in flight · 104 queued · $0.5320 spent" in found[-1]
    assert "left: 468 worker calls" in found[-1]


def test_a_block_has_one_line_whatever_its_code_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(FakeClock(0.0))
    for _, event in EVENTS:
        lines.on_event(event)
    lines.on_event(BlockEnded(1, ENDED))
    assert capsys.readouterr().err.splitlines() == [
        "turn 1: supervisor replied, 900 tokens in, 80 out, 4.0 s",
        f"turn 1: block ok, 2.0 s, 36 characters of output, 50 of 200 worker calls, {FAILED}",
    ]


class Stopped(BaseException):
    """As Ctrl-C ends a run."""


def stop_lines() -> None:
    with plain_lines() as lines:
        for _, event in EVENTS:
            lines.on_event(event)
        raise Stopped


def test_a_run_that_is_stopped_says_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        stop_lines()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        "turn 1, 50 worker calls done, 3 worker calls failed: no connection (3), $0.5500 spent"
    )


def stop_panel() -> None:
    with live_panel("q") as panel:
        for _, event in EVENTS:
            panel.on_event(event)
        raise Stopped


def test_a_panel_that_is_stopped_restores_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(Stopped):
        stop_panel()
    text = capfd.readouterr().err
    hidden, _, after = text.rpartition("\x1b[?25l")
    # Erased, the cursor shown, and below it what was done.
    assert hidden == ""
    assert after.rindex("\x1b[2K") < after.rindex("stopped after")
    assert after.rindex("\x1b[?25h") < after.rindex("stopped after")


@pytest.mark.parametrize(("term", "draws"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_dumb_terminal_gets_lines_wrapped_at_words(
    term: str, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 40))
    monkeypatch.setenv("TERM", term)
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert can_redraw() is draws
        lines = wrapped("word " * 20 + "end").splitlines()
        # What a person copies has no line end in it.
        command = "to go on: supdist-engine run task.json --resume logs/runs/a-b-c"
        assert wrapped(f"{command}\n{command}") == f"{command}\n{command}"
        assert f"logs/{'x-' * 40}" in wrapped(f"the logs are in logs/{'x-' * 40}").splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert " ".join(lines).split() == ["word"] * 20 + ["end"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (0.0, "0 s"), (119.4, "119 s"), (125, "2 min 5 s"), (7199.6, "2 h 0 min")],
)
def test_a_duration_is_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words
