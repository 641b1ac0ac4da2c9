from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine import CellResult, Outcome
from supdist.engine.sandbox.cell_details import detail_of
from supdist.engine.sandbox.config import Display, ErrorInfo, Usage
from supdist.engine.slices import finish
from supdist.engine.supervisor import transcript
from supdist.engine.supervisor.prompts import Prompts, context_facts, fill, nudge
from supdist.engine.supervisor.transcript import without_seconds
from supdist.sandbox_image.protocol import NOT_MEASURED, CellEnd
from supdist.sandbox_image.text import excerpt


def result(**changes: Any) -> CellResult:
    values: dict[str, Any] = {
        "cell": 1, "outcome": Outcome.OK, "stdout": "", "stderr": "", "truncated": False, "error": None,
        "final": None, "elapsed": 0.1, "worker_wait": 0.0, "state_lost": False, "dropped": 0,
        "usage": Usage(0.0, 0, "watchdog"),
    }  # fmt: skip
    return CellResult(**{**values, **changes})


def show_results(results: list[CellResult], blocks: int, limit: int) -> str:
    return finish(transcript.show_results(results, blocks, limit))


def test_output_error_and_what_was_not_run_are_all_shown() -> None:
    error = ErrorInfo(
        "ValueError", "no", 'Traceback (most recent call last):\n  File "<cell 2>", line 3\nValueError: no\n'
    )
    shown = show_results(
        [result(stdout="one\n"), result(outcome=Outcome.USER_ERROR, stderr="warn\n", error=error)], 3, 2000
    )
    assert "Block 1 of 3 ran" in shown
    assert "one" in shown
    assert "[stderr]\nwarn" in shown
    assert 'File "<cell 2>", line 3' in shown
    assert "variables that were set before it are kept" in shown
    assert shown.endswith("[1 further block not executed]")


def test_a_silent_block_is_told_to_print() -> None:
    assert "print what you want to see" in show_results([result()], 1, 100)


def test_a_dead_interpreter_is_named_as_such() -> None:
    shown = show_results(
        [result(outcome=Outcome.CRASHED, state_lost=True, detail="ended by SIGSEGV")], 1, 100
    )
    assert "ended the interpreter (crashed: ended by SIGSEGV)" in shown


def test_a_supervisor_is_not_told_to_call_reset() -> None:
    stopped = CellEnd(
        1, Outcome.OUTPUT_LIMIT, None, 0.0, 0.0, True, True, 0, "did not stop when interrupted", NOT_MEASURED
    )
    detail = detail_of(stopped, 1024)
    assert detail.endswith("; did not stop when interrupted; its variables are lost: call reset()")
    shown = show_results([result(outcome=Outcome.OUTPUT_LIMIT, state_lost=True, detail=detail)], 1, 100)
    assert "(output_limit: more than 1024 bytes of output; did not stop when interrupted)." in shown


def test_nudges_grow_more_urgent() -> None:
    texts = [nudge(Prompts(), left, 15) for left in (14, 6, 5, 2, 1)]
    assert texts[0] == "14 turns are left."
    assert texts[1] == "6 turns are left."
    assert texts[2].startswith("Only 5")
    assert texts[3].startswith("Only 2")
    assert "last turn" in texts[4]


def test_values_are_never_read_as_templates() -> None:
    assert fill("Q: $query $other", query="${system} {0} %(x)s $$") == "Q: ${system} {0} %(x)s $$ $other"


def test_context_facts_tell_kind_and_size_and_not_the_text() -> None:
    assert context_facts("a\nb") == "a str of 3 characters in 2 lines."
    assert context_facts(["x", 1]) == "a list of 2 items (int, str)."
    assert context_facts({"k" * 100: 1}).startswith("a dict of 1 keys: 'kkk")
    assert "secret" not in context_facts({"title": "secret", "body": "secret"})


def test_the_time_of_a_block_is_told_where_it_is_long_and_its_own() -> None:
    """What differs from one run to the next would part their conversations."""
    assert show_results([result(elapsed=0.1)], 1, 100) == show_results([result(elapsed=9.0)], 1, 100)
    assert show_results([result(elapsed=99.0, worker_wait=98.0)], 1, 100).startswith("The block ran.")
    assert show_results([result(elapsed=12.4)], 1, 100).startswith("The block ran (12 s).")


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.USER_ERROR, Outcome.TIMEOUT])
def test_the_time_that_blocks_took_can_be_left_out(outcome: Outcome) -> None:
    def shown(seconds: float) -> str:
        results = [result(elapsed=seconds, outcome=outcome, stdout="took (1.5 s)"), result(elapsed=seconds)]
        return without_seconds(show_results(results, 2, 1000))

    assert shown(0.1) == shown(123.4)
    assert "took (1.5 s)" in shown(0.1)


@given(st.lists(st.text("ab\n€", max_size=8), min_size=2, max_size=4), st.integers(1, 14))
def test_a_long_output_is_cut_as_its_whole_text_would_be(texts: list[str], limit: int) -> None:
    stdout, stderr, *shown = texts
    displays = tuple(Display({"text/plain": each}) for each in shown)
    whole = [
        stdout.rstrip("\n"),
        *shown,
        f"[stderr]\n{stderr.rstrip(chr(10))}" if stderr.rstrip("\n") else "",
    ]
    output = "\n".join(filter(None, whole))
    text = show_results([result(stdout=stdout, stderr=stderr, display=displays)], 1, limit)
    if output:
        assert text == f"The block ran.\nOutput:\n{excerpt(output, limit)}"
