"""The best answer after a limit: plain text, the FINAL of code, or None with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import SMALL_CONFIG, block, read_events

from supdist.engine import RunLimits, RunResult, arun
from supdist.engine.supervisor.best_answer import answer_blocks, literal_final
from supdist.handlers import Completion, HandlerError, Message, ModelHandler, ScriptedHandler, Unavailable
from supdist.tools.distill.conversations import read_conversation

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("It is 42.", []),
        ("```repl\nprint(1)\n```", ["print(1)"]),
        ("I think:\n```python\nx = 42\n```\nSo it is.", ["x = 42"]),
        # A fence without a language: code, or an answer in a fence.
        ("```\nFINAL(42)\n```", ["FINAL(42)\n"[:-1]]),
        ("```\nprint(x)\n```", ["print(x)"]),
        ("```\n42\n```", []),
        ("```\nParis, since 1789\n```", []),
        # No fence at all.
        ("FINAL('42')", ["FINAL('42')"]),
        ("x = 1\nFINAL(x)", ["x = 1\nFINAL(x)"]),
        ("Call FINAL(42).", []),
        ("print is what they used", []),
        ("```bash\nls\n```", []),
        # Code of ours in other clothes.
        ("found = worker('a')\nprint(found)", ["found = worker('a')\nprint(found)"]),
        ("_ = FINAL('42')", ["_ = FINAL('42')"]),
        ("I answer:\n\nFINAL('42')", ["FINAL('42')"]),
        ("Done:\n```\nFINAL(42)\n```", ["FINAL(42)"]),
        ("  ```py3\n  FINAL(42)\n  ```", ["FINAL(42)"]),
        ("```\nx = 1\n```\n```\nFINAL(x)\n```", ["x = 1", "FINAL(x)"]),
        # Answers that are code, as the query may want.
        ("x = 42", []),
        ("Use this:\n```\nprint(x)\n```", []),
        ("The FINAL(s) were in 1998.", []),
    ],
)
def test_code_in_a_best_answer_is_found(text: str, code: list[str]) -> None:
    assert answer_blocks(text) == code


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("FINAL('42')", "42"),
        ("x = 1\nFINAL([1, 'é'])\nFINAL(2)", '[1, "é"]'),
        ("FINAL(x)", None),
        ("if found:\n    FINAL('42')", None),
        ("FINAL()", None),
        ("FINAL({1, 2})", None),
        ("FINAL([1e999])", None),
        ("FINAL(" + "[" * 100_000, None),
        ("not Python", None),
    ],
)
def test_an_answer_that_is_written_out_is_read_without_running_anything(
    code: str, answer: str | None
) -> None:
    assert literal_final(code) == answer


async def best(*replies: str | HandlerError, **options: Any) -> tuple[RunResult, ScriptedHandler]:
    supervisor = ScriptedHandler([block("found = 'from the code'"), *replies])
    options = {"max_iterations": 1, "sandbox": SMALL_CONFIG, **options}
    result = await arun(query="q", context="c", supervisor=supervisor, worker=None, **options)
    return result, supervisor


async def test_the_final_of_a_code_block_counts() -> None:
    result, supervisor = await best(block("FINAL(found)"))
    assert (result.answer, result.stop_reason, result.failure) == ("from the code", "max_iterations", None)
    assert len(supervisor.calls) == 2


async def test_a_block_without_final_is_never_the_answer_but_asked_for_once_more(tmp_path: Path) -> None:
    result, supervisor = await best(block("print('it is', found)"), "It is 42.", log_dir=tmp_path)
    assert (result.answer, result.stop_reason, result.failure) == ("It is 42.", "max_iterations", None)
    again = supervisor.calls[2][-1]["content"]
    assert "it is from the code" in again, "the supervisor sees what its block printed"
    assert "Reply with the answer alone, as plain text" in again
    asked = [event for event in read_events(tmp_path, "supervisor") if event["event"] == "supervisor"]
    assert [event["purpose"] for event in asked] == ["turn", "best_answer", "best_answer"]


async def test_two_blocks_are_no_answer_and_the_result_says_why() -> None:
    result, supervisor = await best(block("print(1)"), block("print(2)"), "too late")
    assert (result.answer, result.stop_reason) == (None, "max_iterations")
    assert result.failure == "the supervisor's best answer was code without FINAL; it was asked for twice"
    assert len(supervisor.calls) == 3


async def test_an_empty_best_answer_is_asked_for_once_more() -> None:
    result, _ = await best("  \n", "42")
    assert result.answer == "42"


@pytest.mark.parametrize("before", [[], [block("print(1)")]])
async def test_a_request_that_fails_is_in_the_log_and_the_result(tmp_path: Path, before: list[str]) -> None:
    result, _ = await best(*before, Unavailable("503"), log_dir=tmp_path)
    assert (result.answer, result.stop_reason) == (None, "max_iterations")
    assert result.failure is not None
    assert result.failure.endswith("the supervisor gave no best answer: Unavailable: 503")
    failed, end = read_events(tmp_path, "supervisor")[-2:]
    assert (failed["event"], failed["purpose"]) == ("supervisor", "best_answer")
    assert (failed["error"], failed["message"]) == ("unavailable", "Unavailable: 503")
    assert "research is over" in failed["messages"][-1]["content"] or before
    assert end["failure"] == result.failure
    turns = read_conversation(tmp_path, result.run_id).turns
    assert len(turns) == 1 + len(before), "a request without a reply is no turn"


class Thinks(ModelHandler):
    """Needs some time for its best answer."""

    model = "thinks"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def chat(self, messages: Sequence[Message]) -> Completion:
        if "research is over" in messages[-1]["content"]:
            await asyncio.sleep(self._seconds)
            return Completion("the best answer")
        return Completion(block("while True: pass") if "second" in messages[1]["content"] else "no code")


async def thinking(seconds: float, query: str = "q", **limits: float) -> RunResult:
    return await arun(
        query=query, context="c", supervisor=Thinks(seconds), worker=None, sandbox=SMALL_CONFIG,
        max_iterations=1, limits=RunLimits.model_validate(limits),
    )  # fmt: skip


async def test_without_a_time_limit_a_best_answer_may_take_as_long_as_a_call(tmp_path: Path) -> None:
    result = await thinking(0.3, final_seconds=0.01)
    assert (result.answer, result.failure) == ("the best answer", None)
    result = await thinking(30, final_seconds=60, call_seconds=0.1)
    assert (result.answer, result.stop_reason) == (None, "max_iterations")
    assert result.failure is not None
    assert "no reply before the time was up" in result.failure


async def test_with_a_time_limit_there_is_a_reserve_for_it() -> None:
    """The rest of the time counts too, if another limit was reached first."""
    assert (await thinking(0.3, max_seconds=60, final_seconds=0.01)).answer == "the best answer"
    assert (await thinking(0.1, "second", max_seconds=0.5, final_seconds=30)).answer == "the best answer"
    late = await thinking(30, "second", max_seconds=0.5, final_seconds=0.1)
    assert (late.answer, late.stop_reason) == (None, "timeout")


async def test_both_tries_of_a_best_answer_share_the_reserve() -> None:
    async def sleeps(messages: Sequence[Message]) -> str:
        return block("import time; time.sleep(60)")

    result = await arun(
        query="q", context="c", supervisor=ScriptedHandler(sleeps), worker=None, sandbox=SMALL_CONFIG,
        limits=RunLimits(max_seconds=0.2, final_seconds=1),
    )  # fmt: skip
    assert (result.answer, result.stop_reason) == (None, "timeout")
    # With a reserve each it would be 2.2 s; what is above 1.2 s is the start and the end of the sandbox.
    assert result.elapsed < 2.2


async def test_a_best_answer_that_comes_too_late_is_in_the_log(tmp_path: Path) -> None:
    result = await arun(
        query="q", context="c", supervisor=Thinks(30), worker=None, sandbox=SMALL_CONFIG, max_iterations=1,
        call_seconds=0.1, log_dir=tmp_path,
    )  # fmt: skip
    assert result.answer is None
    failed = read_events(tmp_path, "supervisor")[-2]
    assert (failed["purpose"], failed["error"]) == ("best_answer", "timeout")


def test_a_long_text_in_a_call_of_final_is_still_found() -> None:
    text = 'It\'s said: "no".\n' * 5_000
    assert answer_blocks(f"FINAL({text!r})") == [f"FINAL({text!r})"]
    assert literal_final(f"FINAL({text!r})") == text
