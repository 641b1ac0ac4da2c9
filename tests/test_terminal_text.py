r"""Output as a terminal shows it: ``\r``, ``\b`` and escape sequences act or vanish before it is cut."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from operator import methodcaller

import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_support import terminal_output
from test_transcript import result

from supdist.engine.sandbox.config import Display, ErrorInfo
from supdist.engine.slices import finish as finish_steps
from supdist.engine.supervisor.transcript import show_results
from supdist.sandbox_image.terminal_text import finish, join_terminal_text, terminal_text

MIB = 1 << 20


def shown(*texts: str) -> str:
    return finish(join_terminal_text(texts))


BAR = "".join(f"\r{done:6}|{'#' * (done % 50):50}| {done}/10000 [00:01, 9.1kit/s]" for done in range(10_001))
# As tqdm draws two bars: a line feed for each bar above, then back up.
TWO_BARS = "".join(f"\rfirst {n}\n\rsecond {n}\x1b[A" for n in range(100)) + "\n\ndone"
# As rich erases the lines of its live display.
RICH = "working 1\nof 2" + "\r\x1b[2K\x1b[1A\x1b[2Kworking 2\nof 2" * 50 + "\n"

MOJIBAKE = "\xc3\x9bn \xe2\x80\x9d0 \xe2\x80\x9d"

ROWS = {
    "a return overwrites": ("10%\r100%\n", "100%\n"),
    "a shorter text leaves the rest": ("abcdef\rXY", "XYcdef"),
    "windows line ends": ("a\r\nb \r\n", "a\nb \n"),
    "a return at the end": ("50%\r", "50%"),
    "blanks that hide a text": ("Loading...\r          \rdone", "done"),
    "blanks that nothing hides": ("a  \nb  ", "a  \nb  "),
    "backspaces": ("abc\b\bXY\b\b\b\b\bZ", "ZXY"),
    "overstrike": ("b\bbo\bo _\bx", "bo x"),
    "erase to the end": ("long text\rshort\x1b[K", "short"),
    "erase the line": ("long text\x1b[2K\rnew", "new"),
    "erase from the begin": ("abc\x1b[1Kd", "   d"),
    "erase characters": ("abcd\r\x1b[2X", "  cd"),
    "colours": ("\x1b[1;38;5;196mred\x1b[0m \x1b[38:2::1:2:3mx\x1b[m", "red x"),
    "a cursor that hides": ("\x1b[?25lx\x1b[?25h", "x"),
    "places in a row": ("abcd\x1b[2DX\x1b[1GY\x1b[1CZ", "YbZd"),
    "places beyond the end": ("a\x1b[3Cb", "a   b"),
    "places in rows": ("a\nb\nc\x1b[2AX\x1b[BY\x1b[EZ\x1b[2FW", "WX\nb Y\nZ"),
    "places on the screen": ("abc\ndef\x1b[1;2HX\x1b[2dY", "aXc\ndeY"),
    "saved places": ("a\x1b[sb\x1b[uc\x1b7\nd\x1b8e", "ace\nd"),
    "erase below": ("a\nb\nc\x1b[2A\r\x1b[Jx", "x"),
    "a cleared screen": ("old\n\x1b[2J\x1b[Hnew", "new"),
    "a reset": ("old\n\x1bcnew", "new"),
    "titles": ("\x1b]0;title\x07a\x1b]2;title\x1b\\b", "ab"),
    "links": ("\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "text"),
    "images": ("\x1bPq#0;2;0;0;0\x1b\\a\x1b_Gf=100;AAAA\x1b\\b", "ab"),
    "sets of characters": ("\x1b(B\x0ea\x0f\x1b%G", "a"),
    "an unfinished sequence": ("a\x1b[3", "a"),
    "an escape alone": ("a\x1b", "a"),
    "a broken sequence": ("\x1b[31\na\x1b[\xe9", "\na\xe9"),
    "a title without end": ("\x1b]0;title\nresult", "\nresult"),
    "8-bit sequences": ("\x9b31mred\x9b0m \x9d0;title\x9cx", "red x"),
    "mojibake is no sequence": (MOJIBAKE, MOJIBAKE),
    "other control characters": ("\x00\x07\x0b\x0c\x7f\x85\t", "\x00\x07\x0b\x0c\x7f\x85\t"),
    "a progress bar": (BAR + "\nresult", f" 10000|{'':50}| 10000/10000 [00:01, 9.1kit/s]\nresult"),
    "two bars": (TWO_BARS, "first 99\nsecond 99\ndone"),
    "rich": (RICH, "working 2\nof 2\n"),
    "rows that scrolled off": ("a\n" * 500 + "\x1b[999Ax", "a\n" * 301 + "x\n" + "a\n" * 198),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ROWS.values(), ids=ROWS)
def test_a_text_is_shown_as_a_terminal_shows_it(text: str, expected: str) -> None:
    assert finish(terminal_text(text)) == expected


@given(st.text())
def test_a_text_without_control_characters_stays_as_it_is(text: str) -> None:
    plain = "".join(each for each in text if each not in "\r\b\x0e\x0f\x1b\x9b\x9d")
    assert finish(terminal_text(plain)) is plain
    # So it does beside one.
    assert finish(terminal_text(plain + "\x1b[m")) == plain


PARTS = (
    "a", "bc", "  ", "\n", "\r", "\b", "\x1b", "[", "]", "\x9b", "\x9d", "0;", "m", "\x07", "\\", "\x9c",
    "31", "\x0e", "\xe9\ud800", "\n" * 250, "x\n" * 199, "\x1b[A", "\x1b[2A", "\x1b[B", "\x1b[K", "\x1b[1K",
    "\x1b[2K", "\x1b[J", "\x1b[2J", "\x1b[3C", "\x1b[D", "\x1b[5G", "\x1b[2;3H", "\x1b[s", "\x1b[u", "\x1b[X",
)  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=14), st.data())
def test_a_text_in_pieces_is_shown_as_the_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    whole = shown(text)
    at = data.draw(st.integers(0, len(text)))
    assert shown(text[:at], text[at:]) == whole == shown(*text)
    assert not set(whole) & set("\r\b\x1b\x0e\x0f")


HOSTILE = {
    "returns": "\r" * MIB,
    "updates": "a\r" * (MIB // 2),
    "backspaces": "a\b" * (MIB // 2),
    "escapes": "\x1b" * MIB,
    "sequences": "\x1b[" * (MIB // 2),
    "a sequence without end": "\x1b[" + "1;" * (MIB // 2),
    "a title without end": "\x1b]" + "x" * MIB,
    "titles without end": "\x1b]" * (MIB // 2),
    "8-bit titles without end": "\x9d0;" * (MIB // 3),
    "8-bit sequences without end": "\x9b1" * (MIB // 2),
    "rows up": "a\n\x1b[A" * (MIB // 5),
    "rows erased": "a\n\x1b[J" * (MIB // 5),
    "a long row, erased from its begin": "x" * MIB + "\x1b[1K" * (MIB // 4),
    "a long row, erased from its end": "x" * MIB + "\b\x1b[K" * (MIB // 4),
    "a place far right, again and again": "x" * MIB + "\x1b[2Ky" * (MIB // 5),
    "a long row, twice": "x" * (8 * MIB) + "\r" + "y" * (8 * MIB),
    "many rows": "\n" * (8 * MIB) + "\r",
    "wide": "\U0001f600" * (2 * MIB) + "\r",
}


@pytest.mark.timing
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_output_takes_short_steps_and_linear_time(text: str) -> None:
    steps = terminal_text(text)
    whole, longest = time.process_time(), 0.0
    while True:
        began = time.process_time()
        ended = next(steps, steps)
        longest = max(longest, time.process_time() - began)
        if ended is steps:
            break
    assert longest < 0.02
    assert time.process_time() - whole < 10


def test_blanks_before_a_place_far_right_are_bounded() -> None:
    assert len(shown("\x1b[999Cx\n" * 100_000)) < 2 * MIB


def test_the_supervisor_sees_the_result_behind_a_progress_bar() -> None:
    error = ErrorInfo("E", "m", "Traceback\n\x1b[31mE\x1b[0m: m\n")
    done = result(
        stdout="accuracy 0.93\n", stderr=BAR + "\n", error=error, display=(Display({"text/plain": "1\r2"}),)
    )
    text = finish_steps(show_results([done], 1, 2000))
    bar = f" 10000|{'':50}| 10000/10000 [00:01, 9.1kit/s]"
    assert text == f"The block ran.\nOutput:\naccuracy 0.93\n2\n[stderr]\n{bar}\nTraceback\nE: m"


def test_output_of_sequences_alone_is_no_output() -> None:
    assert "It showed nothing" in finish_steps(show_results([result(stdout="\x1b[?25l\x1b[?25h")], 1, 2000))


def test_a_notebook_shows_output_as_a_terminal_does() -> None:
    done = result(stdout="10%\r\x1b[32m100%\x1b[0m", display=(Display({"text/plain": "\x1b[1m7\x1b[0m"}),))
    # As IPython calls it.
    html = methodcaller("_repr_html_")(done)
    assert ">100%</pre>" in html
    assert ">7</pre>" in html


CODE = "print('10%\\r\\x1b[32m100%\\x1b[0m \\x1b]0;t\\x07\\u202e')"


def test_exec_shows_a_terminal_the_end_of_it_and_a_file_all_of_it() -> None:
    command = [sys.executable, "-m", "supdist.engine", "exec", CODE]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == "10%\r\x1b[32m100%\x1b[0m \x1b]0;t\x07\u202e\n".encode()
    controller, terminal = os.openpty()
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal):
        os.close(terminal)
        seen = b"".join(terminal_output(controller))
    os.close(controller)
    assert seen == b"100% \\u202e\r\n"
